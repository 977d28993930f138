#include "bindings/transaction.h"

namespace tproxy::bindings {

void Job::add(const std::shared_ptr<Session>& session, std::unique_ptr<AnyTask> task) {
  tasks_.push_back(std::move(task));
  if (std::find(sessions_.begin(), sessions_.end(), session) == sessions_.end()) sessions_.push_back(session);
}

void Job::submit() {
  for (const auto& session : sessions_) session->jobs_.push_back(shared_from_this());
  startIfReady();
  // The first one is under way.
  for (size_t i = 1; i < tasks_.size(); ++i) tasks_[i]->prepare();
}

void Job::startIfReady() {
  if (running_) return;
  for (const auto& session : sessions_)
    if (session->jobs_.front().get() != this) return;
  running_ = true;
  for (const auto& task : tasks_) task->start();
  try {
    Executor::of(env_).submit(env_, shared_from_this());
  } catch (...) {
    drop();
    throw;
  }
}

void Job::discard() {
  const auto why = std::make_exception_ptr(netlink::Error("go on", {.errnum = ECANCELED, .request = "none"}));
  for (const auto& task : tasks_) task->skip(why);
  // By way of a thread all the same, so that whoever waits for all hears first of the call that was refused.
  discarded_ = true;
  sessions_.clear();
  startIfReady();
}

void Job::run() noexcept {
  if (discarded_) return;
  std::exception_ptr failure;
  for (const auto& task : tasks_) {
    if (failure)
      task->skip(failure);
    else
      failure = task->run();
  }
}

// The sessions refer to their jobs, and those to them.
void Job::drop() {
  for (const auto& session : sessions_) session->jobs_.clear();
}

void Job::settle(Napi::Env env) {
  for (const auto& task : tasks_) task->settle(env);
}

void Job::finish(Napi::Env env) {
  try {
    settle(env);
  } catch (const Napi::Error&) {
    return drop();  // the environment is being torn down
  }
  for (const auto& session : sessions_) {
    session->jobs_.pop_front();
    if (!session->jobs_.empty()) session->jobs_.front()->startIfReady();
  }
}

}  // namespace tproxy::bindings
