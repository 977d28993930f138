// Where one environment's transactions with the kernel are made. Not on libuv's pool: names looked up and files read may keep
// that busy for seconds while rules have to be repaired.
#pragma once
#include <napi.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace tproxy::bindings {

class Executor {
 public:
  class Work {
   public:
    virtual ~Work() = default;
    virtual void run() noexcept = 0;         // on a thread of the executor's
    virtual void finish(Napi::Env env) = 0;  // on JavaScript's, afterwards
    virtual void drop() = 0;                 // instead of it: the environment ends, nobody is left to tell
  };

  // The one of this environment.
  static Executor& of(Napi::Env env);
  ~Executor() { stop(); }

  // Both on JavaScript's thread. Until `work` is finished the process is kept alive. Throws where there can be no thread.
  void submit(Napi::Env env, std::shared_ptr<Work> work);
  // What somebody will do anyway, but may be done before by a thread that has nothing else to do.
  void suggest(std::function<void()> work);

 private:
  struct Thread {
    std::thread thread;
    std::condition_variable wake;
    bool woken = false;
  };

  Executor();
  Thread* takeIdle();
  void startThread();
  void main(Thread& self);
  void stop();
  static void deliver(Napi::Env env, Napi::Function, Executor* self, void*);
  void deliverTo(Napi::Env env);
  using Calls = Napi::TypedThreadSafeFunction<Executor, void, deliver>;

  Calls calls_;
  const size_t mostThreads_;
  size_t unfinished_ = 0;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::mutex mutex_;  // guards what follows
  bool stopped_ = false;
  // The last one to become idle is the first to be woken: its caches are warm.
  std::vector<Thread*> idle_;
  std::deque<std::shared_ptr<Work>> works_;
  std::deque<std::function<void()>> suggested_;
  std::vector<std::shared_ptr<Work>> finished_;
};

}  // namespace tproxy::bindings
