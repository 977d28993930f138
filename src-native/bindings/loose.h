// Descriptors that JavaScript holds as mere numbers: none of them has an owner that closes it.
#pragma once
#include <sys/stat.h>

#include <map>

#include "unique_fd.h"

namespace tproxy::bindings {

// Between native code that opened a descriptor and whoever takes it (a handle of Node's, a relay thread, closeDescriptor())
// a worker thread may be terminated. What is loose then is closed with its environment.
class LooseDescriptors {
 public:
  LooseDescriptors() = default;
  LooseDescriptors(const LooseDescriptors&) = delete;
  LooseDescriptors& operator=(const LooseDescriptors&) = delete;
  // Termination may also come between Node's taking one and remove(): Node has closed it by now, and its number may be
  // another thread's. The inode of a socket tells.
  ~LooseDescriptors() {
    for (const auto& [fd, inode] : inodes_)
      if (inodeOf(fd) == inode) UniqueFd{fd};
  }
  int add(UniqueFd fd) {
    inodes_.insert_or_assign(fd.get(), inodeOf(fd.get()));
    return fd.release();
  }
  UniqueFd remove(int fd) {
    inodes_.erase(fd);
    return UniqueFd(fd);
  }

 private:
  static ino_t inodeOf(int fd) {
    struct stat status {};
    return fstat(fd, &status) < 0 ? 0 : status.st_ino;
  }

  std::map<int, ino_t> inodes_;
};

}  // namespace tproxy::bindings
