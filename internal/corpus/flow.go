package corpus

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"bulkhead/internal/core/model"
)

// FlowLine is one line of a flows section:
//
//	web-1 -> db-1 on tcp/5432: allow
//	web-1 -> db-1 on tcp/5432: allow by payments/web-to-db
//	web-1 -> db-1 on icmp/8: deny egress=allow:open ingress=deny:default-deny
//	web-1 [process unit=a.service path=/bin/x user=root] -> 192.0.2.1 [domain api.stripe.com] on tcp/443: would-deny
//	web-1 -> 10.0.0.7 on tcp/80: error shared
//
// "by" names who decides at both ends, apart from one that is unmanaged. Words with spaces or quotes in them are quoted as
// in Go.
type FlowLine struct {
	Flow   model.Flow
	Expect Expect
}

// Expect is what a line expects of its flow. The zero value expects nothing.
type Expect struct {
	Form    ExpectForm
	Verdict model.FlowVerdict // of the ends as far as Form says
	By      model.RuleID
	Error   string // a part of the error
}

// ExpectForm says how much a line expects.
type ExpectForm uint8

// The forms.
const (
	ExpectNothing ExpectForm = iota
	ExpectVerdict
	ExpectBy
	ExpectEnds
	ExpectError
)

// ParseFlowLine reads a line without comments.
func ParseFlowLine(text string) (*FlowLine, error) {
	l := &FlowLine{}
	p := &words{rest: text}
	if err := p.end(&l.Flow.From, &l.Flow.FromProcess, nil); err != nil {
		return nil, err
	}
	if w := p.next(); w != "->" {
		return nil, fmt.Errorf("%q stands where -> is expected; write FROM -> TO on tcp/443: VERDICT", w)
	}
	if err := p.end(&l.Flow.To, &l.Flow.ToProcess, &l.Flow.ToDomain); err != nil {
		return nil, err
	}
	if w := p.next(); w != "on" {
		return nil, fmt.Errorf("%q stands where on is expected; write FROM -> TO on tcp/443: VERDICT", w)
	}
	portText, more := strings.CutSuffix(p.next(), ":")
	port, err := parsePort(portText)
	if err != nil {
		return nil, err
	}
	l.Flow.Proto, l.Flow.Port = port.Proto, port.Lo
	rest := strings.TrimSpace(p.rest)
	if more != (rest != "") {
		return nil, fmt.Errorf("after the port stand a colon and what is expected, or nothing")
	}
	if more {
		l.Expect, err = parseExpect(rest)
	}
	return l, err
}

// parsePort reads one port; an ICMP type alone stands for its code 0, and a number for the IP protocol of that number.
func parsePort(text string) (model.PortRange, error) {
	if n, err := strconv.ParseUint(text, 10, 8); err == nil && n > 0 {
		return model.PortRange{Proto: model.Proto(n)}, nil
	}
	r, err := model.ParsePortRange(text)
	switch {
	case err != nil:
		return r, err
	case r.Proto.IsICMP() && r.Lo&0xff == 0 && r.Hi == r.Lo|0xff:
		r.Hi = r.Lo
	case !r.Single():
		return r, fmt.Errorf("%q is more than one port; a flow has one, such as tcp/5432 or icmp/8", text)
	}
	return r, nil
}

func parseExpect(text string) (Expect, error) {
	var x Expect
	first, rest, _ := strings.Cut(text, " ")
	rest = strings.TrimSpace(rest)
	if first == "error" {
		if rest == "" {
			return x, fmt.Errorf("error stands alone; write a part of what it says after it")
		}
		return Expect{Form: ExpectError, Error: rest}, nil
	}
	v, err := model.ParseVerdict(first)
	if err != nil {
		return x, err
	}
	x = Expect{Form: ExpectVerdict, Verdict: model.FlowVerdict{Verdict: v}}
	f := strings.Fields(rest)
	switch {
	case len(f) == 0:
		return x, nil
	case len(f) == 2 && f[0] == "by":
		x.Form, x.By = ExpectBy, model.RuleID(f[1])
		return x, nil
	case len(f) == 2 && strings.HasPrefix(f[0], "egress=") && strings.HasPrefix(f[1], "ingress="):
		x.Form = ExpectEnds
		if x.Verdict.Egress, err = parseEnd(f[0]); err == nil {
			x.Verdict.Ingress, err = parseEnd(f[1])
		}
		if err == nil && x.Verdict != model.Join(x.Verdict.Egress, x.Verdict.Ingress) {
			err = fmt.Errorf("the verdict over these ends is not %s", v)
		}
		return x, err
	}
	return x, fmt.Errorf("%q: write by RULE, or egress=VERDICT:RULE ingress=VERDICT:RULE", rest)
}

func parseEnd(text string) (model.EndVerdict, error) {
	_, text, _ = strings.Cut(text, "=")
	verdict, rule, ok := strings.Cut(text, ":")
	v, err := model.ParseVerdict(verdict)
	if err == nil && (!ok || rule == "") {
		err = fmt.Errorf("%q: write VERDICT:RULE, such as deny:default-deny", text)
	}
	return model.EndVerdict{Verdict: v, Rule: model.RuleID(rule)}, err
}

// String returns the line as ParseFlowLine reads it.
func (l *FlowLine) String() string {
	text := l.FlowText()
	if l.Expect.Form != ExpectNothing {
		text += ": " + l.Expect.String()
	}
	return text
}

// FlowText returns the line without what is expected.
func (l *FlowLine) FlowText() string {
	f := &l.Flow
	var b strings.Builder
	writeEnd(&b, &f.From, f.FromProcess, "")
	b.WriteString(" -> ")
	writeEnd(&b, &f.To, f.ToProcess, f.ToDomain)
	b.WriteString(" on ")
	b.WriteString(PortText(f.Proto, f.Port))
	return b.String()
}

// PortText returns the port of a flow as lines spell it.
func PortText(p model.Proto, port uint16) string {
	if text := p.String(); port == 0 && text == strconv.Itoa(int(p)) {
		return text
	}
	return model.PortRange{Proto: p, Lo: port, Hi: port}.String()
}

// String returns what is expected as lines spell it.
func (x *Expect) String() string {
	v := &x.Verdict
	switch x.Form {
	case ExpectVerdict:
		return v.Verdict.String()
	case ExpectBy:
		return fmt.Sprintf("%s by %s", v.Verdict, x.By)
	case ExpectEnds:
		return fmt.Sprintf("%s egress=%s:%s ingress=%s:%s", v.Verdict, v.Egress.Verdict, v.Egress.Rule, v.Ingress.Verdict, v.Ingress.Rule)
	case ExpectError:
		return "error " + x.Error
	}
	return ""
}

// expectation returns what a line of that form should expect of a flow with this verdict. A line that expects nothing yet
// gets the shortest form that says everything.
func expectation(form ExpectForm, v model.FlowVerdict) Expect {
	by, same := decider(v)
	switch {
	case form == ExpectVerdict:
		return Expect{Form: ExpectVerdict, Verdict: model.FlowVerdict{Verdict: v.Verdict}}
	case same && form != ExpectEnds:
		return Expect{Form: ExpectBy, Verdict: model.FlowVerdict{Verdict: v.Verdict}, By: by}
	}
	return Expect{Form: ExpectEnds, Verdict: v}
}

// decider returns who decides at both ends, if that is one and the verdict is one.
func decider(v model.FlowVerdict) (model.RuleID, bool) {
	e, i := v.Egress, v.Ingress
	switch {
	case e == i:
		return e.Rule, true
	case i.Rule == model.RuleUnmanaged:
		return e.Rule, true
	case e.Rule == model.RuleUnmanaged:
		return i.Rule, true
	}
	return "", false
}

// words takes a line apart.
type words struct{ rest string }

// next returns the next word, or "" at the end.
func (p *words) next() string {
	p.rest = strings.TrimLeft(p.rest, " \t")
	if at := strings.IndexAny(p.rest, " \t"); at >= 0 {
		word := p.rest[:at]
		p.rest = p.rest[at:]
		return word
	}
	word := p.rest
	p.rest = ""
	return word
}

// end reads one end with what stands in brackets behind it. Only the end with a domain may have one.
func (p *words) end(e *model.End, process **model.Process, domain *string) error {
	name := p.next()
	if name == "" || name == "->" || name == "on" || name[0] == '[' {
		return fmt.Errorf("%q stands where a workload or an address is expected", name)
	}
	*e = model.End{Workload: name}
	if a, err := netip.ParseAddr(name); err == nil {
		e.Addr = a
	}
	for {
		p.rest = strings.TrimLeft(p.rest, " \t")
		if !strings.HasPrefix(p.rest, "[") {
			return nil
		}
		kind, fields, err := p.brackets()
		if err != nil {
			return err
		}
		switch {
		case kind == "process" && *process == nil:
			*process, err = parseProcess(fields)
		case kind == "domain" && domain != nil && *domain == "" && len(fields) == 1:
			*domain = fields[0]
		default:
			err = fmt.Errorf("[%s …] cannot stand there; write [process unit=x path=/y user=z] once behind an end, [domain name] once behind TO", kind)
		}
		if err != nil {
			return err
		}
	}
}

// brackets reads "[kind field …]".
func (p *words) brackets() (kind string, fields []string, err error) {
	p.rest = p.rest[1:]
	for {
		p.rest = strings.TrimLeft(p.rest, " \t")
		if after, ok := strings.CutPrefix(p.rest, "]"); ok {
			p.rest = after
			break
		}
		word, err := p.field()
		if err != nil {
			return "", nil, err
		}
		if kind == "" {
			kind = word
		} else {
			fields = append(fields, word)
		}
	}
	if len(fields) == 0 {
		return "", nil, fmt.Errorf("[%s] says nothing", kind)
	}
	return kind, fields, nil
}

// field reads a word within brackets: up to a space or the bracket, where a part in quotes holds both.
func (p *words) field() (string, error) {
	var b strings.Builder
	for p.rest != "" && !strings.ContainsRune(" \t]", rune(p.rest[0])) {
		if p.rest[0] != '"' {
			b.WriteByte(p.rest[0])
			p.rest = p.rest[1:]
			continue
		}
		quoted, err := strconv.QuotedPrefix(p.rest)
		if err != nil {
			return "", fmt.Errorf("the quotes at %s are not closed", p.rest)
		}
		p.rest = p.rest[len(quoted):]
		text, err := strconv.Unquote(quoted)
		if err != nil {
			return "", fmt.Errorf("%s: %w", quoted, err)
		}
		b.WriteString(text)
	}
	if p.rest == "" {
		return "", fmt.Errorf("a ] is missing")
	}
	if b.Len() == 0 {
		return "", fmt.Errorf("a word within brackets is empty")
	}
	return b.String(), nil
}

func parseProcess(fields []string) (*model.Process, error) {
	p := &model.Process{}
	for _, f := range fields {
		key, value, ok := strings.Cut(f, "=")
		to := map[string]*string{"unit": &p.Unit, "path": &p.Path, "user": &p.User}[key]
		if !ok || to == nil || value == "" || *to != "" {
			return nil, fmt.Errorf("%q: a process is told by unit=, path= and user=, each once", f)
		}
		*to = value
	}
	return p, nil
}

func writeEnd(b *strings.Builder, e *model.End, p *model.Process, domain string) {
	b.WriteString(e.Workload)
	if p != nil {
		b.WriteString(" [process")
		for _, f := range []struct{ key, value string }{{"unit", p.Unit}, {"path", p.Path}, {"user", p.User}} {
			if f.value != "" {
				b.WriteString(" " + f.key + "=" + word(f.value))
			}
		}
		b.WriteString("]")
	}
	if domain != "" {
		b.WriteString(" [domain " + word(domain) + "]")
	}
}

// word quotes what would not come back from field as it is.
func word(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '"' || r == ']' || r > '~' }) {
		return strconv.Quote(s)
	}
	return s
}
