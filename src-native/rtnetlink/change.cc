#include "rtnetlink/change.h"

namespace tproxy::rtnetlink {

namespace {

struct Encoding {
  Names& names;
  Verb verb;

  netlink::Message operator()(const Rule& rule) { return encodeRule(verb, rule); }
  netlink::Message operator()(const Address& address) { return encodeAddress(verb, address); }
  netlink::Message operator()(Route route) {
    forEachDevice(route, [&](Device& device) { names.resolve(device); });
    return encodeRoute(verb, std::move(route));
  }
  netlink::Message operator()(NewLink link) {
    names.resolve(link);
    return encodeNewLink(link);
  }
  netlink::Message operator()(LinkChange change) {
    names.resolve(change.device);
    names.resolve(change.settings);
    return encodeLinkChange(change.device, std::move(change.settings));
  }
  netlink::Message operator()(LinkDeletion deletion) {
    names.resolve(deletion.device);
    return encodeLinkDeletion(deletion.device);
  }
};

}  // namespace

std::vector<netlink::Message> encodeChanges(Names& names, const std::vector<Change>& changes) {
  std::vector<netlink::Message> messages;
  messages.reserve(changes.size());
  for (const Change& change : changes) messages.push_back(std::visit(Encoding{names, change.verb}, change.object));
  return messages;
}

void change(netlink::Connection& connection, const std::vector<Change>& changes) {
  Names names(connection);
  connection.executeAll("change routing", encodeChanges(names, changes));
}

}  // namespace tproxy::rtnetlink
