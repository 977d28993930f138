"""Datagrams, both families.
  udp.py serve NAME PORT            answers each with `NAME <address> <port>` of its sender
  udp.py proxy NAME PORT MARK       takes what tproxy hands over; answers from the original destination, with that too
  udp.py ask ADDRESS PORT [key=value]...   sends one and prints the answer, or the error's name; from=, port=: bound
                                    there, also when it is a foreign address; mark=, timeout=, count= (one socket)
"""
import errno, ipaddress, socket, struct, sys

IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75
IP_RECVORIGDSTADDR, IPV6_RECVORIGDSTADDR = 20, 74
SOL_IPV6 = socket.IPPROTO_IPV6


def open_socket(family, transparent, mark=0):
    one = socket.socket(family, socket.SOCK_DGRAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        one.setsockopt(SOL_IPV6, socket.IPV6_V6ONLY, 0)
    if transparent and family == socket.AF_INET6:
        one.setsockopt(SOL_IPV6, IPV6_TRANSPARENT, 1)
    elif transparent:
        one.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
    if mark:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    return one


def plain(address):
    mapped = ipaddress.ip_address(address)
    return str(getattr(mapped, "ipv4_mapped", None) or mapped)


def original(control):
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_IP, IP_RECVORIGDSTADDR):
            return socket.inet_ntop(socket.AF_INET, data[4:8]), struct.unpack("!H", data[2:4])[0]
        if (level, kind) == (SOL_IPV6, IPV6_RECVORIGDSTADDR):
            return plain(socket.inet_ntop(socket.AF_INET6, data[8:24])), struct.unpack("!H", data[2:4])[0]


def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def serve(name, port):
    one = open_socket(socket.AF_INET6, False)
    one.bind(("::", int(port)))
    print("ready", flush=True)
    while True:
        _, sender = one.recvfrom(2048)
        one.sendto(f"{name} {plain(sender[0])} {sender[1]}".encode(), sender)


def proxy(name, port, mark):
    one = open_socket(socket.AF_INET6, True)
    one.setsockopt(socket.SOL_IP, IP_RECVORIGDSTADDR, 1)
    one.setsockopt(SOL_IPV6, IPV6_RECVORIGDSTADDR, 1)
    one.bind(("::", int(port)))
    answering = {}
    print("ready", flush=True)
    while True:
        _, control, _, sender = one.recvmsg(2048, 512)
        destination = original(control)
        client = plain(sender[0]), sender[1]
        # They stay open: what is sent to them next must come to us all the same.
        if destination not in answering:
            answering[destination] = open_socket(family_of(destination[0]), True, int(mark))
            answering[destination].bind(destination)
        answering[destination].sendto(" ".join(map(str, (name, *client, *destination))).encode(), client)


def ask(address, port, *settings):
    options = dict(setting.split("=") for setting in settings)
    one = open_socket(family_of(address), "from" in options, int(options.get("mark", 0)))
    one.settimeout(float(options.get("timeout", 20)))
    answer = ""
    try:
        if "from" in options or "port" in options:
            one.bind((options.get("from", ""), int(options.get("port", 0))))
        one.connect((address, int(port)))
        for _ in range(int(options.get("count", 1))):
            one.send(b"hello")
            answer = one.recv(2048).decode()
    except TimeoutError:
        answer = "ETIMEDOUT"
    except OSError as error:
        answer = errno.errorcode[error.errno]
    print(answer)


{"serve": serve, "proxy": proxy, "ask": ask}[sys.argv[1]](*sys.argv[2:])
