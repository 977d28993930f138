#include "bindings/executor.h"

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <system_error>
#include <utility>

#include "bindings/instance.h"
#include "signals_blocked.h"

namespace tproxy::bindings {

namespace {

// Each may wait in the kernel for somebody who holds its lock; the others go on. As many as libuv would have for others' work.
size_t threadsAllowed() {
  const char* size = std::getenv("UV_THREADPOOL_SIZE");
  return size ? static_cast<size_t>(std::clamp(std::atoi(size), 1, 1024)) : 4;
}

}  // namespace

Executor::Executor() : mostThreads_(threadsAllowed()) {}

Executor& Executor::of(Napi::Env env) {
  auto& executor = env.GetInstanceData<Instance>()->executor;
  if (!executor) {
    executor.reset(new Executor);
    // Lives until the function that carries its calls is gone, so that no call can meet a dead object.
    executor->calls_ = Calls::New(
        env, "linux-tproxy", 0, 1, executor.get(),
        [](Napi::Env, std::shared_ptr<Executor>* held, Executor*) { delete held; },
        new std::shared_ptr<Executor>(executor));
    executor->calls_.Unref(env);
    // Hooks run in reverse order: the threads are joined before the function goes.
    napi_add_env_cleanup_hook(
        env, [](void* self) { static_cast<Executor*>(self)->stop(); }, executor.get());
  }
  return *executor;
}

void Executor::submit(Napi::Env env, std::shared_ptr<Work> work) {
  Thread* thread;
  {
    const std::lock_guard lock(mutex_);
    if (stopped_) return work->drop();
    works_.push_back(std::move(work));
    thread = takeIdle();
  }
  if (thread) {
    thread->wake.notify_one();
  } else if (threads_.size() < mostThreads_) {
    try {
      startThread();
    } catch (const std::system_error&) {
      if (threads_.empty()) {
        works_.pop_back();
        throw;
      }
      // One of the others does it.
    }
  }
  if (unfinished_++ == 0) calls_.Ref(env);
}

void Executor::suggest(std::function<void()> work) {
  Thread* thread;
  {
    const std::lock_guard lock(mutex_);
    suggested_.push_back(std::move(work));
    if (idle_.size() < threads_.size()) return;  // one that is at work takes it afterwards
    thread = takeIdle();
  }
  if (thread) thread->wake.notify_one();
}

Executor::Thread* Executor::takeIdle() {
  if (idle_.empty()) return nullptr;
  Thread* thread = idle_.back();
  idle_.pop_back();
  thread->woken = true;
  return thread;
}

void Executor::startThread() {
  auto thread = std::make_unique<Thread>();
  const SignalsBlocked blocked;
  thread->thread = std::thread(&Executor::main, this, std::ref(*thread));
  threads_.push_back(std::move(thread));
}

// It keeps the process's name: nf_tables tells others by the thread's who has changed something.
void Executor::main(Thread& self) {
  std::unique_lock lock(mutex_);
  while (!stopped_) {
    if (!works_.empty()) {
      const auto work = std::move(works_.front());
      works_.pop_front();
      lock.unlock();
      work->run();
      lock.lock();
      finished_.push_back(work);
      if (finished_.size() == 1) calls_.NonBlockingCall();
    } else if (!suggested_.empty()) {
      const auto suggested = std::move(suggested_.front());
      suggested_.pop_front();
      lock.unlock();
      suggested();
      lock.lock();
    } else {
      idle_.push_back(&self);
      self.wake.wait(lock, [&] { return self.woken; });
      self.woken = false;
    }
  }
}

void Executor::stop() {
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(stopped_, true)) return;
    while (Thread* thread = takeIdle()) thread->wake.notify_one();
  }
  for (const auto& thread : threads_) thread->thread.join();
  for (const auto& work : works_) work->drop();
  for (const auto& work : finished_) work->drop();
  works_.clear();
  suggested_.clear();
  finished_.clear();
  calls_.Release();
}

void Executor::deliver(Napi::Env env, Napi::Function, Executor* self, void*) {
  if (env != nullptr) self->deliverTo(env);
}

void Executor::deliverTo(Napi::Env env) {
  std::vector<std::shared_ptr<Work>> finished;
  {
    const std::lock_guard lock(mutex_);
    finished.swap(finished_);
  }
  unfinished_ -= finished.size();
  if (unfinished_ == 0 && !finished.empty()) calls_.Unref(env);
  for (const auto& work : finished) work->finish(env);
}

}  // namespace tproxy::bindings
