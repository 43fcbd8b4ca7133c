package nft

import (
	"golang.org/x/sys/unix"

	"bulkhead/internal/core/model"
)

// reopened has a connection that comes back to a port in TIME_WAIT find who listens there: the socket that is left of the one
// before does not say whose it is. The kernel gives such a socket up too, but only after it has been judged.
func (w *writer) reopened() {
	if !w.reopens || w.content == nil || len(w.content.units) == 0 { // where there are no units everything is the host's
		return
	}
	hook := uint32(unix.NF_INET_PRE_ROUTING)
	c := w.chain("prerouting")
	c.hook = &hook
	c.add(join(isProto(model.ProtoTCP), []expression{loadTransport(13, 1, scratch), combine(scratch, []byte{tcpFlagFIN | tcpFlagSYN | tcpFlagRST | tcpFlagACK}, []byte{0}),
		equal(scratch, []byte{tcpFlagSYN}), goTo("reopened").expression()})...)
	to := w.chain("reopened")
	to.add(loadSocket(socketMark, scratch), accept.expression()) // one that is whole
	for _, f := range []struct {
		family         byte
		offset, length uint32 // of the destination address
	}{{unix.NFPROTO_IPV4, 16, 4}, {unix.NFPROTO_IPV6, 24, 16}} {
		to.add(loadSocket(socketTransparent, scratch), loadMeta(unix.NFT_META_NFPROTO, scratch), equal(scratch, []byte{f.family}),
			loadNetwork(f.offset, f.length, address), loadTransport(2, 2, port), reopen(uint32(f.family), address, port))
	}
}
