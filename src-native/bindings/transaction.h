// Runs netlink transactions for JavaScript: on libuv's thread pool with a promise, or at once.
#pragma once
#include <napi.h>

#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <variant>

#include "bindings/js.h"
#include "netlink/connection.h"

namespace tproxy::bindings {

// The Error (of src/errors.ts, where the failure is one of its kinds) that a C++ exception becomes.
Napi::Error jsError(Napi::Env env, const std::exception_ptr& exception);

// No C++ exception may cross into Node.
template <class F>
auto guarded(Napi::Env env, F f) {
  try {
    return f();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw jsError(env, std::current_exception());
  }
}

// A connection and the transactions that wait for it, which run in the order in which JavaScript asked for them. All of
// it is touched by JavaScript's thread only, but for Task::Execute.
class Session : public std::enable_shared_from_this<Session> {
 public:
  enum class When { later, now };

  explicit Session(std::shared_ptr<netlink::Connection> connection) : connection_(std::move(connection)) {}

  // `work` takes the connection and gives nothing, or a struct or a vector of structs that JsWriter knows.
  template <When when, class Work>
  Napi::Value transact(Napi::Env env, Work work) {
    if constexpr (when == When::now) {
      // One that runs on the pool this moment is waited for; those that wait behind it come later.
      return guarded(env, [&] { return toResult(env, resultOf(work, *open())); });
    } else {
      auto task = std::make_unique<Task<Work>>(env, shared_from_this(), std::move(work));
      const Napi::Promise promise = task->promise();
      waiting_.push_back(std::move(task));
      next();
      return promise;
    }
  }

  // A transaction that runs is finished first; those that wait fail.
  void close() { connection_.reset(); }
  const std::shared_ptr<netlink::Connection>& open() const {
    if (!connection_) throw netlink::Error("use a closed socket", {.errnum = EBADF, .request = "none"});
    return connection_;
  }

 private:
  class AnyTask : public Napi::AsyncWorker {
   public:
    using Napi::AsyncWorker::AsyncWorker;
    virtual void start() = 0;
  };
  template <class Work>
  class Task;

  template <class Work>
  static auto resultOf(Work& work, netlink::Connection& connection) {
    if constexpr (std::is_void_v<decltype(work(connection))>) {
      work(connection);
      return std::monostate();
    } else {
      return work(connection);
    }
  }
  static Napi::Value toResult(Napi::Env env, std::monostate) { return env.Undefined(); }
  template <class T>
  static Napi::Value toResult(Napi::Env env, const T& result) {
    return JsWriter::object(env, result);
  }
  template <class T>
  static Napi::Value toResult(Napi::Env env, const std::vector<T>& results) {
    return JsWriter::write(env, results, netlink::list({}, netlink::described));
  }

  void next() {
    if (running_ || waiting_.empty()) return;
    running_ = true;
    auto task = std::move(waiting_.front());
    waiting_.pop_front();
    task.release()->start();  // deletes itself when it is done
  }

  std::shared_ptr<netlink::Connection> connection_;
  std::deque<std::unique_ptr<AnyTask>> waiting_;
  bool running_ = false;
};

template <class Work>
class Session::Task final : public Session::AnyTask {
 public:
  Task(Napi::Env env, std::shared_ptr<Session> session, Work work)
      : AnyTask(env, "netlink"), deferred_(env), session_(std::move(session)), work_(std::move(work)) {}

  Napi::Promise promise() const { return deferred_.Promise(); }

  void start() override {
    connection_ = session_->connection_;
    Queue();
  }

 protected:
  void Execute() override {
    try {
      if (!connection_) throw netlink::Error("use a closed socket", {.errnum = EBADF, .request = "none"});
      result_.emplace(resultOf(work_, *connection_));
    } catch (...) {
      exception_ = std::current_exception();
    }
    connection_.reset();  // if it was closed meanwhile, this is where the socket goes
  }

  void OnWorkComplete(Napi::Env env, napi_status) override {
    const std::unique_ptr<Task> self(this);
    session_->running_ = false;
    try {
      const Napi::HandleScope scope(env);
      if (exception_)
        deferred_.Reject(jsError(env, exception_).Value());
      else
        deferred_.Resolve(toResult(env, *result_));
    } catch (const Napi::Error&) {
      session_->waiting_.clear();  // the environment is being torn down: nobody is left to tell
    }
    session_->next();
  }

 private:
  Napi::Promise::Deferred deferred_;
  std::shared_ptr<Session> session_;
  std::shared_ptr<netlink::Connection> connection_;
  Work work_;
  std::optional<decltype(resultOf(std::declval<Work&>(), std::declval<netlink::Connection&>()))> result_;
  std::exception_ptr exception_;
};

}  // namespace tproxy::bindings
