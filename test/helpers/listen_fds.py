"""Does for a command what systemd does for a service: listen_fds.py '[{"name": "proxy", "transparent": true}]' CMD...
Each socket listens on port 50080 (the next on 50081, ...) of both families. The command runs as nobody, without capabilities."""
import json, os, socket, sys

sockets = json.loads(sys.argv[1])
for index, wanted in enumerate(sockets):
    s = socket.socket(getattr(socket, wanted.get("family", "AF_INET6")), getattr(socket, wanted.get("type", "SOCK_STREAM")))
    if s.family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    if wanted.get("transparent"):
        s.setsockopt(socket.SOL_IP, 19, 1)  # IP_TRANSPARENT
        s.setsockopt(socket.IPPROTO_IPV6, 75, 1)  # IPV6_TRANSPARENT
    s.bind(("", 50080 + index))
    if s.type == socket.SOCK_STREAM:
        s.listen(128)
    os.dup2(s.detach(), 100 + index)
for index in range(len(sockets)):
    os.dup2(100 + index, 3 + index)
    os.close(100 + index)
os.environ["LISTEN_FDS"] = str(len(sockets))
os.environ["LISTEN_FDNAMES"] = ":".join(each["name"] for each in sockets)
os.environ.setdefault("LISTEN_PID", str(os.getpid()))
command = sys.argv[2:]
nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.environ.get("AS_NOBODY") else ["setpriv"]
command = [*nobody, "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", *command]
os.execvp(command[0], command)
