package estate

import (
	"fmt"

	"bulkhead/internal/core/model"
)

// Guardrails returns what an enterprise would promise itself of an estate that Make makes: about environments, about the
// data of single apps, about administration ports.
func Guardrails(n int) []model.Guardrail {
	peer := func(format string, args ...any) []model.Peer {
		return []model.Peer{{Kind: model.PeerWorkloads, Workloads: model.MustParseSelector(fmt.Sprintf(format, args...))}}
	}
	everything := []model.PortRef{{Range: model.AnyPort}}
	tcp := func(port uint16) []model.PortRef {
		return []model.PortRef{{Range: model.PortRange{Proto: model.ProtoTCP, Lo: port, Hi: port}}}
	}
	out := make([]model.Guardrail, n)
	for i := range out {
		g := &out[i]
		g.Name = fmt.Sprintf("guardrail-%03d", i)
		switch i % 4 {
		case 0:
			g.From, g.To, g.On = peer("env=dev"), peer("env=prod,role=db"), everything
		case 1:
			g.From, g.To, g.On = peer("env=dev"), peer("app=app-%05d,env=prod", i), everything
		case 2:
			g.From, g.To, g.On = []model.Peer{{Kind: model.PeerAny}}, peer("env=prod"), tcp(uint16(22+i))
		case 3:
			g.From, g.To, g.On = peer("env=prod,role=web"), peer("env=prod,role=db"), tcp(3306)
		}
	}
	return out
}
