package cli

import (
	"fmt"
	"slices"
	"strings"

	"bulkhead/internal/core/model"
)

// fewDenials is how many edges of one group and one denying verdict the text shows; more become one line, so that a
// scan of the network does not bury who talks to whom.
const fewDenials = 4

// drawText draws the map as a tree: below each group what it asked of whom.
func (m *flowMap) drawText(p *page) {
	if len(m.Edges) == 0 {
		p.line("No flow was recorded that matches.")
		return
	}
	edges := m.Edges
	if !m.everyDenial {
		edges = foldDenials(edges)
	}
	var services, peers, verdicts, counts int
	for _, e := range edges {
		services = max(services, runes(e.Service))
		peers = max(peers, runes(e.To))
		verdicts = max(verdicts, runes(e.Verdict))
		counts = max(counts, runes(thousands(e.Connections)))
	}
	members := map[string]int{}
	for _, n := range m.Nodes {
		members[n.Name] = len(n.Members)
	}
	for i, e := range edges {
		if i == 0 || edges[i-1].From != e.From {
			size := ""
			if n := members[e.From]; n > 1 {
				size = p.paint(fmt.Sprintf("  (%d)", n), faint)
			}
			p.line("%s%s", p.paint(e.From, bold), size)
		}
		branch := "├─"
		if i == len(edges)-1 || edges[i+1].From != e.From {
			branch = "└─"
		}
		verdict := p.paint(fmt.Sprintf("%-*s", verdicts, e.Verdict), verdictColour(e.verdict))
		line := fmt.Sprintf("%s %-*s → %-*s  %s  %*s", branch, services, e.Service, peers, e.To, verdict, counts, thousands(e.Connections))
		p.line("%s%s", line, p.paint(e.remark(), faint))
	}
}

// foldDenials makes one edge of the denials of a group with one verdict if they are many. It stands after the others
// of the group.
func foldDenials(edges []mapEdge) []mapEdge {
	var out []mapEdge
	for len(edges) > 0 {
		n := 1
		for n < len(edges) && edges[n].From == edges[0].From {
			n++
		}
		var denials [3][]mapEdge // by verdict
		for _, e := range edges[:n] {
			if e.verdict == model.Allow {
				out = append(out, e)
			} else {
				denials[e.verdict] = append(denials[e.verdict], e)
			}
		}
		for _, list := range denials {
			if len(list) > fewDenials {
				list = []mapEdge{foldedDenials(list)}
			}
			out = append(out, list...)
		}
		edges = edges[n:]
	}
	return out
}

func foldedDenials(list []mapEdge) mapEdge {
	peers := map[string]bool{}
	sum := mapEdge{From: list[0].From, Verdict: list[0].Verdict, verdict: list[0].verdict}
	for _, e := range list {
		peers[e.To] = true
		sum.Connections += e.Connections
		sum.Ports += e.Ports
	}
	sum.Service = fmt.Sprintf("%d services", sum.Ports)
	sum.To = fmt.Sprintf("at %d peers", len(peers))
	sum.Rules = []string{"--verdict " + sum.Verdict + " lists them"}
	return sum
}

// remark says what stands behind an edge where there is more to say than its verdict.
func (e *mapEdge) remark() string {
	s := ""
	if len(e.Rules) > 0 {
		s = "  " + strings.Join(e.Rules, ", ")
	}
	if e.OneEnd && e.verdict == model.Allow {
		s += "  (one end only)"
	}
	return s
}

func runes(s string) int { return len([]rune(s)) }

// arrow is one line of a drawing: everything between two groups with one verdict.
type arrow struct {
	from, to    int
	verdict     model.Verdict
	services    []string
	connections uint64
}

// arrows bundles the edges that a drawing shows as one.
func (m *flowMap) arrows() []arrow {
	index := map[string]int{}
	for i, n := range m.Nodes {
		index[n.Name] = i
	}
	type key struct {
		from, to int
		verdict  model.Verdict
	}
	at := map[key]int{}
	var out []arrow
	for _, e := range m.Edges {
		k := key{index[e.From], index[e.To], e.verdict}
		i, ok := at[k]
		if !ok {
			i = len(out)
			at[k] = i
			out = append(out, arrow{from: k.from, to: k.to, verdict: k.verdict})
		}
		out[i].services = append(out[i].services, e.Service)
		out[i].connections += e.Connections
	}
	return out
}

// label names the services of an arrow, the first few of them.
func (a *arrow) label() string {
	const few = 4
	services := slices.Clone(a.services)
	if len(services) > few {
		services = append(services[:few-1], fmt.Sprintf("%d more", len(a.services)-few+1))
	}
	return strings.Join(services, ", ")
}

// drawMermaid draws the map for https://mermaid.js.org.
func (m *flowMap) drawMermaid(p *page) {
	p.line("flowchart LR")
	for i, n := range m.Nodes {
		left, right := "[", "]"
		if n.Outside {
			left, right = "([", "])"
		}
		p.line("  n%d%s%s%s", i, left, mermaidText(n.caption("<br>")), right)
	}
	arrows := m.arrows()
	for _, a := range arrows {
		line := "-->"
		if a.verdict != model.Allow {
			line = "-.->"
		}
		p.line("  n%d %s|%s| n%d", a.from, line, mermaidText(a.label()), a.to)
	}
	for i, a := range arrows {
		p.line("  linkStyle %d stroke:%s", i, drawnColour(a.verdict))
	}
}

// mermaidText quotes s; within the quotes Mermaid takes entities.
func mermaidText(s string) string {
	return `"` + strings.NewReplacer(`"`, "#quot;", "#", "#35;").Replace(s) + `"`
}

// drawDOT draws the map for Graphviz.
func (m *flowMap) drawDOT(p *page) {
	p.line("digraph bulkhead {")
	p.line("  rankdir=LR;")
	p.line(`  node [shape=box, style=rounded, fontname="sans-serif"];`)
	p.line(`  edge [fontname="sans-serif", fontsize=10];`)
	for i, n := range m.Nodes {
		shape := ""
		if n.Outside {
			shape = ", shape=ellipse"
		}
		p.line("  n%d [label=%s%s];", i, dotText(n.caption("\n")), shape)
	}
	for _, a := range m.arrows() {
		style := ""
		if a.verdict != model.Allow {
			style = ", style=dashed"
		}
		p.line("  n%d -> n%d [label=%s, color=%q%s];", a.from, a.to, dotText(a.label()), drawnColour(a.verdict), style)
	}
	p.line("}")
}

func dotText(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}

// caption names a group and says how many it stands for.
func (n *mapNode) caption(lineBreak string) string {
	if len(n.Members) < 2 {
		return n.Name
	}
	what := "workloads"
	if n.Outside {
		what = "addresses"
	}
	return fmt.Sprintf("%s%s%d %s", n.Name, lineBreak, len(n.Members), what)
}

// drawnColour tells verdicts apart in drawings, also for people who do not see red and green: the lines differ too.
func drawnColour(v model.Verdict) string {
	switch v {
	case model.Allow:
		return "#2e7d32"
	case model.WouldDeny:
		return "#e08a00"
	}
	return "#c62828"
}
