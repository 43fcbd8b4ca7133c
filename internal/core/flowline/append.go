package flowline

import (
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"

	"bulkhead/internal/core/model"
)

// AppendVerdict appends the verdict as one JSON object, without a line feed.
func AppendVerdict(dst []byte, v model.FlowVerdict) []byte {
	dst = append(dst, `{"verdict":"`...)
	dst = append(dst, v.Verdict.String()...)
	dst = append(dst, `","egress":{"verdict":"`...)
	dst = appendEnd(dst, v.Egress)
	dst = append(dst, `},"ingress":{"verdict":"`...)
	dst = appendEnd(dst, v.Ingress)
	return append(dst, "}}"...)
}

func appendEnd(dst []byte, e model.EndVerdict) []byte {
	dst = append(dst, e.Verdict.String()...)
	dst = append(dst, `","rule":`...)
	return appendText(dst, string(e.Rule))
}

// AppendError appends {"error": …}, what eval writes in the place of a verdict, without a line feed. A nil error is an
// empty text.
func AppendError(dst []byte, err error) []byte {
	msg := ""
	if err != nil {
		msg = err.Error()
	}
	dst = append(dst, `{"error":`...)
	dst = appendText(dst, msg)
	return append(dst, '}')
}

// AppendRecord appends a recorded flow as one JSON object, without a line feed, as ParseRecord reads it. Times are in
// UTC.
func AppendRecord(dst []byte, r *model.RecordedFlow) []byte {
	dst = append(dst, `{"from":`...)
	dst = appendEndpoint(dst, r.From)
	dst = append(dst, `,"to":`...)
	dst = appendEndpoint(dst, r.To)
	dst = append(dst, `,"proto":`...)
	dst = appendText(dst, r.Proto.String())
	dst = appendPort(dst, r.Proto, r.Port)
	dst = appendProcess(dst, "from_process", r.FromProcess)
	dst = appendProcess(dst, "to_process", r.ToProcess)
	dst = appendOptional(dst, "to_domain", r.ToDomain)
	dst = appendAddr(dst, "from_addr", r.FromAddr)
	dst = appendAddr(dst, "to_addr", r.ToAddr)
	dst = appendOptional(dst, "from_process_name", r.FromName)
	dst = appendOptional(dst, "to_process_name", r.ToName)
	dst = append(dst, `,"connections":`...)
	dst = strconv.AppendUint(dst, r.Connections, 10)
	dst = appendTime(dst, "first", r.First)
	dst = appendTime(dst, "last", r.Last)
	dst = append(dst, `,"verdict":"`...)
	dst = append(dst, r.Verdict.String()...)
	return append(dst, `"}`...)
}

func appendEndpoint(dst []byte, e model.End) []byte {
	if e.Workload != "" {
		return appendText(dst, e.Workload)
	}
	dst = append(dst, '"')
	if e.Addr.IsValid() {
		dst = e.Addr.Unmap().AppendTo(dst)
	}
	return append(dst, '"')
}

// appendPort writes type and code of ICMP, and a port of 0 only where a flow must have a port.
func appendPort(dst []byte, proto model.Proto, port uint16) []byte {
	switch {
	case proto.IsICMP():
		dst = append(dst, `,"icmp_type":`...)
		dst = strconv.AppendUint(dst, uint64(port>>8), 10)
		dst = append(dst, `,"icmp_code":`...)
		port &= 0xff
	case port == 0 && proto != model.ProtoTCP && proto != model.ProtoUDP && proto != model.ProtoSCTP:
		return dst
	default:
		dst = append(dst, `,"port":`...)
	}
	return strconv.AppendUint(dst, uint64(port), 10)
}

func appendProcess(dst []byte, field string, p *model.Process) []byte {
	if p == nil {
		return dst
	}
	dst = appendField(dst, field)
	dst = append(dst, '{')
	empty := len(dst)
	dst = appendOptional(dst, "unit", p.Unit)
	dst = appendOptional(dst, "path", p.Path)
	dst = appendOptional(dst, "user", p.User)
	if len(dst) > empty { // without the comma before the first field
		dst = append(dst[:empty], dst[empty+1:]...)
	}
	return append(dst, '}')
}

func appendField(dst []byte, field string) []byte {
	dst = append(dst, `,"`...)
	dst = append(dst, field...)
	return append(dst, `":`...)
}

func appendOptional(dst []byte, field, text string) []byte {
	if text == "" {
		return dst
	}
	return appendText(appendField(dst, field), text)
}

func appendAddr(dst []byte, field string, a netip.Addr) []byte {
	if !a.IsValid() {
		return dst
	}
	dst = append(appendField(dst, field), '"')
	dst = a.Unmap().WithZone("").AppendTo(dst)
	return append(dst, '"')
}

func appendTime(dst []byte, field string, t time.Time) []byte {
	if t.IsZero() {
		return dst
	}
	dst = append(appendField(dst, field), '"')
	dst = t.UTC().AppendFormat(dst, time.RFC3339Nano)
	return append(dst, '"')
}

const hexDigits = "0123456789abcdef"

// appendText appends a JSON string. Bytes that are not UTF-8 become U+FFFD.
func appendText(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < utf8.RuneSelf && c != '"' && c != '\\' {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r != utf8.RuneError || n > 1 {
				i += n
				continue
			}
		}
		dst = append(dst, s[start:i]...)
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, `\n`...)
		case c == '\t':
			dst = append(dst, `\t`...)
		case c == '\r':
			dst = append(dst, `\r`...)
		case c < ' ':
			dst = append(dst, `\u00`...)
			dst = append(dst, hexDigits[c>>4], hexDigits[c&0xf])
		default:
			dst = append(dst, "\ufffd"...)
		}
		i++
		start = i
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}
