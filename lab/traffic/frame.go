package traffic

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The lab's own protocol: a frame is
//
//	"BHL1" kind(1) len(id)(1) len(body)(4) id body
//
// in a TCP stream, or alone in a UDP datagram. A reply carries the id of its request.
const (
	frameMagic  = "BHL1"
	frameHeader = len(frameMagic) + 1 + 1 + 4
	frameLimit  = 64 << 10 // of a body
)

type frameKind byte

const (
	frameRequest frameKind = 1 + iota
	frameReply
	frameTakeover // the body is a Takeover, as JSON
	frameTaken    // the body is a TakeoverReply, as JSON
)

type frame struct {
	kind frameKind
	id   string
	body []byte
}

var errFrame = errors.New("not a frame of the lab")

func (f *frame) append(dst []byte) []byte {
	dst = append(dst, frameMagic...)
	dst = append(dst, byte(f.kind), byte(len(f.id)))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(f.body)))
	dst = append(dst, f.id...)
	return append(dst, f.body...)
}

func writeFrame(w io.Writer, f *frame) (int, error) {
	if len(f.id) > 255 || len(f.body) > frameLimit {
		return 0, fmt.Errorf("%w: it is too long", errFrame)
	}
	return w.Write(f.append(make([]byte, 0, frameHeader+len(f.id)+len(f.body))))
}

// readFrame reads one frame. At the end of the stream the error is io.EOF; within a frame io.ErrUnexpectedEOF.
func readFrame(r io.Reader) (*frame, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	if string(head[:4]) != frameMagic {
		return nil, errFrame
	}
	idLen, bodyLen := int(head[5]), binary.BigEndian.Uint32(head[6:])
	if bodyLen > frameLimit {
		return nil, fmt.Errorf("%w: it is too long", errFrame)
	}
	rest := make([]byte, idLen+int(bodyLen))
	if _, err := io.ReadFull(r, rest); err != nil {
		if errors.Is(err, io.EOF) && len(rest) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return &frame{kind: frameKind(head[4]), id: string(rest[:idLen]), body: rest[idLen:]}, nil
}

// parseDatagram reads a frame that fills a datagram.
func parseDatagram(b []byte) (*frame, error) {
	r := bytes.NewReader(b)
	f, err := readFrame(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errFrame, err)
	}
	if r.Len() > 0 {
		return nil, fmt.Errorf("%w: %d bytes too many", errFrame, r.Len())
	}
	return f, nil
}

// echoRoundTrip sends one request of size bytes and waits for its reply.
func echoRoundTrip(rw io.ReadWriter, id string, size int) (sent, rcvd int, err error) {
	sent, err = writeFrame(rw, &frame{kind: frameRequest, id: id, body: make([]byte, size)})
	if err != nil {
		return sent, 0, err
	}
	f, err := readFrame(rw)
	if err != nil {
		return sent, 0, err
	}
	if f.kind != frameReply || f.id != id {
		return sent, 0, fmt.Errorf("asked %s and got the reply to %q", id, f.id)
	}
	return sent, frameHeader + len(f.id) + len(f.body), nil
}
