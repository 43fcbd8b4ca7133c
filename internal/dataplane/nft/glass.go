package nft

import (
	"golang.org/x/sys/unix"

	"bulkhead/internal/core/model"
)

// underGlass lets everything pass. That it was judged is not noted, so policy holds again with the next packet.
func (w *writer) underGlass() {
	if w.content == nil || !w.content.glass {
		return
	}
	in, out := w.chain("glass-in"), w.chain("glass-out")
	in.add(join(isDirection(ctOriginal), one(jump("mark-i").expression()))...)
	in.add(join(isDirection(ctReply), one(jump("mark-e").expression()))...)
	local := []expression{loadMeta(unix.NFT_META_IIF, scratch), equal(scratch, ne32(1))}
	in.add(join(local, isNew(), w.known(model.Egress), w.tell("le", 'g', 'o'))...)
	in.add(join(local, isNew(), w.known(model.Ingress), w.tell("li", 'g', 'o'))...)
	in.add(join(local, one(accept.expression()))...)
	// What no socket of ours gets is the host's, but for TCP, which then nobody gets.
	mask, nobody := w.layout.end(model.Ingress, 0)
	_, host := w.layout.end(model.Ingress, hostNumber)
	in.add(join([]expression{loadMeta(unix.NFT_META_L4PROTO, protocol), differs(protocol, []byte{byte(model.ProtoTCP)})}, isNew(), []expression{
		loadFlow(unix.NFT_CT_MARK, mark), combine(mark, ne32(mask), ne32(0)), equal(mark, nobody),
		loadFlow(unix.NFT_CT_MARK, mark), combine(mark, ne32(^(mask | w.layout.generation())), host), setFlowMark(mark)})...)
	in.add(join(isNew(), w.known(model.Ingress), w.tell("i", 'g', 'o'))...)
	in.always(accept)
	out.add(join(isDirection(ctOriginal), one(jump("mark-e").expression()))...)
	out.add(join(isDirection(ctReply), one(jump("mark-i").expression()))...)
	out.add(loadMeta(unix.NFT_META_OIF, scratch), equal(scratch, ne32(1)), accept.expression())
	out.add(join(isDirection(ctOriginal), isNew(), w.tell("e", 'g', 'o'))...)
	out.always(accept)
}
