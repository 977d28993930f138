// Runs netlink transactions for JavaScript: on a thread of the executor's with a promise, or at once.
#pragma once
#include <napi.h>

#include <algorithm>
#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "bindings/executor.h"
#include "bindings/instance.h"
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

// A class of JavaScript's that takes this care of each `method` in its list.
template <class T>
class GuardedWrap : public Napi::ObjectWrap<T> {
 protected:
  using Method = Napi::Value (T::*)(const Napi::CallbackInfo&);

  explicit GuardedWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<T>(info) {}

  template <Method function>
  static Napi::ClassPropertyDescriptor<T> method(const char* name) {
    return GuardedWrap::InstanceMethod(name, static_cast<Method>(&GuardedWrap::template call<function>));
  }

 private:
  template <Method function>
  Napi::Value call(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] { return (static_cast<T*>(this)->*function)(info); });
  }
};

class Session;

// One transaction and its promise.
class AnyTask {
 public:
  virtual ~AnyTask() = default;
  virtual void start() = 0;                              // on JavaScript's thread
  virtual void prepare() noexcept = 0;                   // on any thread, also while it runs; or not at all
  virtual std::exception_ptr run() noexcept = 0;         // why it failed, if it did
  virtual void skip(const std::exception_ptr& why) = 0;  // instead of run()
  virtual void settle(Napi::Env env) = 0;                // on JavaScript's thread
};

// Transactions that go to a thread together, one after the other; those behind one that
// fails are not run, and fail with it. A round trip to a thread costs more than most transactions.
class Job final : public Executor::Work, public std::enable_shared_from_this<Job> {
 public:
  explicit Job(Napi::Env env) : env_(env) {}

  void add(const std::shared_ptr<Session>& session, std::unique_ptr<AnyTask> task);
  size_t size() const { return tasks_.size(); }
  // When all sessions that it is for have done what they were asked before.
  void submit();
  void startIfReady();
  // Instead of submit(): its promises are rejected.
  void discard();

  void run() noexcept override;
  void finish(Napi::Env env) override;
  void drop() override;

 private:
  void settle(Napi::Env env);

  const Napi::Env env_;
  std::vector<std::unique_ptr<AnyTask>> tasks_;
  std::vector<std::shared_ptr<Session>> sessions_;
  bool running_ = false;
  bool discarded_ = false;
};

// A connection and the jobs that wait for it, which run in the order in which JavaScript asked for them. All of it is
// touched by JavaScript's thread only, but for AnyTask::run.
class Session : public std::enable_shared_from_this<Session> {
 public:
  enum class When { later, now };

  explicit Session(std::shared_ptr<netlink::Connection> connection) : connection_(std::move(connection)) {}

  // `work` takes the connection, or nothing where it has to do without. It gives nothing, or a struct or a vector of
  // structs that JsWriter knows.
  template <When when, class Work>
  Napi::Value transact(Napi::Env env, Work work) {
    if constexpr (when == When::now) {
      // One that runs on another thread this moment is waited for; those that wait behind it come later.
      return guarded(env, [&] { return toResult(env, resultOf(work, open().get())); });
    } else {
      auto task = std::make_unique<Task<Work>>(env, shared_from_this(), std::move(work));
      const Napi::Promise promise = task->promise();
      if (Job* sequence = env.GetInstanceData<Instance>()->sequence) {
        sequence->add(shared_from_this(), std::move(task));
      } else {
        const auto job = std::make_shared<Job>(env);
        job->add(shared_from_this(), std::move(task));
        job->submit();
      }
      return promise;
    }
  }

  // A transaction that runs is finished first; those that wait fail. On another thread, since the kernel may have a lot to do
  // for it: the promise is kept when it is done.
  Napi::Value close(Napi::Env env) {
    return transact<When::later>(env, [last = std::exchange(connection_, nullptr)]() mutable { last.reset(); });
  }
  const std::shared_ptr<netlink::Connection>& open() const {
    if (!connection_) throw netlink::Error("use a closed socket", {.errnum = EBADF, .request = "none"});
    return connection_;
  }

 private:
  friend class Job;
  template <class Work>
  class Task;

  template <class Work>
  static auto callWork(Work& work, netlink::Connection* connection) {
    if constexpr (std::is_invocable_v<Work&>) {
      return work();
    } else {
      if (!connection) throw netlink::Error("use a closed socket", {.errnum = EBADF, .request = "none"});
      return work(*connection);
    }
  }
  template <class Work>
  static auto resultOf(Work& work, netlink::Connection* connection) {
    if constexpr (std::is_void_v<decltype(callWork(work, connection))>) {
      callWork(work, connection);
      return std::monostate();
    } else {
      return callWork(work, connection);
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

  std::shared_ptr<netlink::Connection> connection_;
  std::deque<std::shared_ptr<Job>> jobs_;  // the first may be running
};

template <class Work>
class Session::Task final : public AnyTask {
 public:
  Task(Napi::Env env, std::shared_ptr<Session> session, Work work)
      : deferred_(env), session_(std::move(session)), work_(std::move(work)) {}

  Napi::Promise promise() const { return deferred_.Promise(); }

  void start() override { connection_ = session_->connection_; }

  // Work may have a part that can be done before its turn has come.
  void prepare() noexcept override {
    if constexpr (requires { work_.prepare(); }) work_.prepare();
  }

  std::exception_ptr run() noexcept override {
    try {
      result_.emplace(resultOf(work_, connection_.get()));
    } catch (...) {
      exception_ = std::current_exception();
    }
    connection_.reset();  // if it was closed meanwhile, this is where the socket goes
    return exception_;
  }

  void skip(const std::exception_ptr& why) override {
    exception_ = why;
    connection_.reset();
  }

  void settle(Napi::Env env) override {
    const Napi::HandleScope scope(env);
    if (exception_)
      deferred_.Reject(jsError(env, exception_).Value());
    else
      deferred_.Resolve(toResult(env, *result_));
  }

 private:
  Napi::Promise::Deferred deferred_;
  std::shared_ptr<Session> session_;
  std::shared_ptr<netlink::Connection> connection_;
  Work work_;
  std::optional<decltype(resultOf(std::declval<Work&>(), std::declval<netlink::Connection*>()))> result_;
  std::exception_ptr exception_;
};

}  // namespace tproxy::bindings
