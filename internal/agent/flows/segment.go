package flows

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
)

// segment is one file of the spool: frames one after the other, each
//
//	length of body u32 · CRC-32C of the rest u32 · sequence u64 · lost u64 · records u32 · body
//
// in little endian. The body is a FlowBatch; what stands before it says enough to count without decoding it.
type segment struct {
	path string
	file *os.File
	size int64  // of the frames that are whole
	last uint64 // sequence of the last one
}

type frame struct {
	sequence uint64
	records  uint64 // in the batch
	lost     uint64 // that the batch tells of
	body     []byte
}

const (
	segmentSuffix = ".flows"
	frameHeader   = 28
	maxBody       = 4 << 20
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	errFrame   = errors.New("a batch in the spool is damaged")
)

func frameSize(body []byte) int64 { return frameHeader + int64(len(body)) }

func newSegment(dir string, sequence uint64) (*segment, error) {
	path := filepath.Join(dir, fmt.Sprintf("%020d%s", sequence, segmentSuffix))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return &segment{path: path, file: f}, nil
}

// openSegment reads what is there up to the first frame that is not whole; a crash in the middle of a write leaves
// one at the end, and it is cut off.
func openSegment(path string) (*segment, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	g := &segment{path: path, file: f}
	for {
		fr, err := g.read(g.size)
		if errors.Is(err, errFrame) || errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		g.size += frameSize(fr.body)
		g.last = fr.sequence
	}
	if err := f.Truncate(g.size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return g, nil
}

// append writes a frame. If that fails halfway, what was written does not count.
func (g *segment) append(f frame) error {
	buf := make([]byte, frameHeader, frameSize(f.body))
	binary.LittleEndian.PutUint32(buf, uint32(len(f.body)))
	binary.LittleEndian.PutUint64(buf[8:], f.sequence)
	binary.LittleEndian.PutUint64(buf[16:], f.lost)
	binary.LittleEndian.PutUint32(buf[24:], uint32(f.records))
	buf = append(buf, f.body...)
	binary.LittleEndian.PutUint32(buf[4:], crc32.Checksum(buf[8:], castagnoli))
	if _, err := g.file.WriteAt(buf, g.size); err != nil {
		return err
	}
	g.size += int64(len(buf))
	g.last = f.sequence
	return nil
}

// read returns the frame at the offset: io.EOF at the end, errFrame for one that is damaged or cut short.
func (g *segment) read(offset int64) (frame, error) {
	head := make([]byte, frameHeader)
	switch n, err := g.file.ReadAt(head, offset); {
	case err == io.EOF && n == 0:
		return frame{}, io.EOF
	case err == io.EOF:
		return frame{}, errFrame
	case err != nil:
		return frame{}, err
	}
	size := binary.LittleEndian.Uint32(head)
	if size > maxBody {
		return frame{}, errFrame
	}
	f := frame{
		sequence: binary.LittleEndian.Uint64(head[8:]),
		lost:     binary.LittleEndian.Uint64(head[16:]),
		records:  uint64(binary.LittleEndian.Uint32(head[24:])),
		body:     make([]byte, size),
	}
	if _, err := g.file.ReadAt(f.body, offset+frameHeader); err == io.EOF && size > 0 {
		return frame{}, errFrame
	} else if err != nil && err != io.EOF {
		return frame{}, err
	}
	sum := crc32.Update(crc32.Checksum(head[8:], castagnoli), castagnoli, f.body)
	if sum != binary.LittleEndian.Uint32(head[4:]) {
		return frame{}, errFrame
	}
	return f, nil
}

// count returns how many records the batches after the sequence hold, and how many lost ones they tell of.
func (g *segment) count(after uint64) (records, lost uint64) {
	for offset := int64(0); offset < g.size; {
		f, err := g.read(offset)
		if err != nil {
			return records, lost // the rest cannot be counted
		}
		if f.sequence > after {
			records += f.records
			lost += f.lost
		}
		offset += frameSize(f.body)
	}
	return records, lost
}

func (g *segment) close() error { return g.file.Close() }

func (g *segment) remove() error {
	return errors.Join(g.file.Close(), os.Remove(g.path))
}
