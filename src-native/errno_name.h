// `ENOENT` for 2: what strerrorname_np(3) does, which musl does not have. Complete for what netlink and sockets return.
#pragma once
#include <cerrno>
#include <string>

namespace tproxy {

inline std::string errnoName(int errnum) {
  switch (errnum) {
#define NAME(constant) \
  case constant:       \
    return #constant;
    NAME(EPERM)
    NAME(ENOENT)
    NAME(ESRCH)
    NAME(EINTR)
    NAME(EIO)
    NAME(ENXIO)
    NAME(E2BIG)
    NAME(EBADF)
    NAME(EAGAIN)
    NAME(ENOMEM)
    NAME(EACCES)
    NAME(EFAULT)
    NAME(EBUSY)
    NAME(EEXIST)
    NAME(EXDEV)
    NAME(ENODEV)
    NAME(ENOTDIR)
    NAME(EISDIR)
    NAME(EINVAL)
    NAME(ENFILE)
    NAME(EMFILE)
    NAME(ENOTTY)
    NAME(EFBIG)
    NAME(ENOSPC)
    NAME(EROFS)
    NAME(EMLINK)
    NAME(EPIPE)
    NAME(EDOM)
    NAME(ERANGE)
    NAME(EDEADLK)
    NAME(ENAMETOOLONG)
    NAME(ENOSYS)
    NAME(ENOTEMPTY)
    NAME(ELOOP)
    NAME(ENODATA)
    NAME(EPROTO)
    NAME(EBADMSG)
    NAME(EOVERFLOW)
    NAME(ERESTART)
    NAME(ENOTSOCK)
    NAME(EDESTADDRREQ)
    NAME(EMSGSIZE)
    NAME(EPROTOTYPE)
    NAME(ENOPROTOOPT)
    NAME(EPROTONOSUPPORT)
    NAME(ESOCKTNOSUPPORT)
    NAME(EOPNOTSUPP)
    NAME(EPFNOSUPPORT)
    NAME(EAFNOSUPPORT)
    NAME(EADDRINUSE)
    NAME(EADDRNOTAVAIL)
    NAME(ENETDOWN)
    NAME(ENETUNREACH)
    NAME(ENETRESET)
    NAME(ECONNABORTED)
    NAME(ECONNRESET)
    NAME(ENOBUFS)
    NAME(EISCONN)
    NAME(ENOTCONN)
    NAME(ETIMEDOUT)
    NAME(ECONNREFUSED)
    NAME(EHOSTDOWN)
    NAME(EHOSTUNREACH)
    NAME(EALREADY)
    NAME(EINPROGRESS)
    NAME(ESTALE)
    NAME(EDQUOT)
    NAME(ECANCELED)
#undef NAME
    default:
      return "errno " + std::to_string(errnum);
  }
}

}  // namespace tproxy
