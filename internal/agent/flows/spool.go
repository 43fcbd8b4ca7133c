package flows

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/agent/durable"
)

// Spool keeps batches of records on disk, in order, until they are acknowledged. When it or the disk is full the oldest
// go. It survives a restart of the agent; a power cut may cost the newest batches. Its methods may be called from several
// goroutines.
type Spool struct {
	dir      string
	limit    int64
	instance string
	more     chan struct{} // something was appended

	mu       sync.Mutex
	ready    bool // the directory has been read and can be written to
	closed   bool
	segments []*segment // oldest first; the last is written to
	next     uint64     // sequence of the next batch
	acked    uint64
	lost     uint64 // records dropped and not yet told
	ever     uint64 // records dropped since the start
}

const (
	instanceFile = "instance"
	// skipAhead is left out of the numbering at a restart, because a power cut may have taken batches that the
	// controller has seen.
	skipAhead = 1 << 20
	// minSpool is the least that holds two segments of a useful size.
	minSpool = 64 << 10
)

// OpenSpool opens the spool in the directory, which it makes if need be. It will take up to limit bytes of disk. Where
// the disk does not let it, each Append tries again and says why: an agent has more to do than to record flows.
func OpenSpool(dir string, limit int64) (*Spool, error) {
	if limit < minSpool {
		return nil, fmt.Errorf("a spool of %d bytes is too small; give it at least %d", limit, minSpool)
	}
	s := &Spool{dir: dir, limit: limit, more: make(chan struct{}, 1), next: 1}
	_ = s.open() // Append tries again
	return s, nil
}

// open makes the spool ready. The caller holds mu, or is the only one to know the spool.
func (s *Spool) open() error {
	if s.ready {
		return nil
	}
	if s.closed {
		return os.ErrClosed
	}
	err := s.read()
	if s.instance == "" { // the first call decides, also if it fails: the controller is told, and it stays
		if s.instance = rand.Text(); len(s.segments) > 0 && s.written() != "" {
			s.instance = s.written()
		}
	}
	if err == nil && s.written() != s.instance { // a full disk keeps nobody from sending what is there
		err = durable.WriteFile(filepath.Join(s.dir, instanceFile), []byte(s.instance+"\n"), 0o600)
	}
	if err != nil {
		return errors.Join(err, s.letGo())
	}
	s.ready = true
	return nil
}

// read opens what an earlier spool has left.
func (s *Spool) read() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	names, err := filepath.Glob(filepath.Join(s.dir, "*"+segmentSuffix))
	if err != nil {
		return err
	}
	slices.Sort(names) // names are sequence numbers of one width
	for _, name := range names {
		g, err := openSegment(name)
		if err != nil {
			return err
		}
		if g.size == 0 {
			if err := g.remove(); err != nil {
				return err
			}
			continue
		}
		s.segments = append(s.segments, g)
		s.next = g.last + skipAhead
	}
	return nil
}

// written returns the instance that the directory holds, or "". As long as batches of it are left it is ours.
func (s *Spool) written() string {
	data, err := os.ReadFile(filepath.Join(s.dir, instanceFile))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// Instance names the numbering of the batches: within it sequences only grow, also over a restart.
func (s *Spool) Instance() string { return s.instance }

// Append adds a batch. Records that cannot be written are counted as lost, and so are lost.
func (s *Spool) Append(records []*pb.FlowRecord, lost uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost += lost
	if err := s.open(); err != nil {
		s.drop(uint64(len(records)))
		return err
	}
	batch := &pb.FlowBatch{Sequence: s.next, Records: records, Lost: s.lost}
	body, err := proto.Marshal(batch)
	if err == nil {
		err = s.write(frame{sequence: s.next, records: uint64(len(records)), lost: s.lost, body: body})
	}
	if err != nil {
		s.drop(uint64(len(records)))
		return err
	}
	s.next++
	s.lost -= batch.Lost // making room for the batch may have cost others
	select {
	case s.more <- struct{}{}:
	default:
	}
	return nil
}

func (s *Spool) write(f frame) error {
	size := frameSize(f.body)
	if size > s.limit/2 {
		return fmt.Errorf("a batch of %d bytes does not fit into a spool of %d", size, s.limit)
	}
	for s.size()+size > s.limit && len(s.segments) > 0 {
		if err := s.dropOldest(); err != nil {
			return err
		}
	}
	err := s.put(f)
	if errors.Is(err, unix.ENOSPC) && len(s.segments) > 1 {
		if err := s.dropOldest(); err != nil {
			return err
		}
		err = s.put(f)
	}
	return err
}

// put writes a frame behind the others.
func (s *Spool) put(f frame) error {
	if n := len(s.segments); n == 0 || s.segments[n-1].size+frameSize(f.body) > s.segmentLimit() {
		g, err := newSegment(s.dir, s.next)
		if err != nil {
			return err
		}
		s.segments = append(s.segments, g)
	}
	return s.segments[len(s.segments)-1].append(f)
}

// segmentLimit keeps segments small enough that dropping one does not lose much of what fits.
func (s *Spool) segmentLimit() int64 { return min(1<<20, s.limit/8) }

func (s *Spool) size() (n int64) {
	for _, g := range s.segments {
		n += g.size
	}
	return n
}

// dropOldest makes room and counts what is lost by it. A batch that is on its way at that moment counts, too, although
// it may arrive: rather too many than too few.
func (s *Spool) dropOldest() error {
	g := s.segments[0]
	records, lost := g.count(s.acked)
	if err := g.remove(); err != nil {
		return err
	}
	s.segments = s.segments[1:]
	s.lost += lost // was counted once, but the batch that would have told it is gone
	s.drop(records)
	return nil
}

// giveUp removes a segment that cannot be read to its end. How much was in the rest nobody knows: it counts as one.
func (s *Spool) giveUp(i int) error {
	s.drop(1)
	g := s.segments[i]
	s.segments = slices.Delete(s.segments, i, i+1)
	return g.remove()
}

func (s *Spool) drop(records uint64) {
	s.lost += records
	s.ever += records
}

// Ack says that the controller has everything up to the sequence.
func (s *Spool) Ack(sequence uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sequence >= s.next || sequence <= s.acked {
		return nil // of an earlier numbering, or said before
	}
	s.acked = sequence
	for len(s.segments) > 0 && s.segments[0].last <= s.acked {
		if err := s.segments[0].remove(); err != nil {
			return err
		}
		s.segments = s.segments[1:]
	}
	return nil
}

// More is signalled after batches were appended.
func (s *Spool) More() <-chan struct{} { return s.more }

// Lost returns how many records were dropped since the start.
func (s *Spool) Lost() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ever
}

// Backlog returns how many bytes wait to be acknowledged.
func (s *Spool) Backlog() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size()
}

// Close lets go of the files and leaves them where they are.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return s.letGo()
}

func (s *Spool) letGo() error {
	var err error
	for _, g := range s.segments {
		err = errors.Join(err, g.close())
	}
	s.segments, s.ready = nil, false
	return err
}

// Reader returns the batches that are not acknowledged, oldest first. One goroutine may use it.
type Reader struct {
	spool  *Spool
	on     *segment
	offset int64
	last   uint64
}

// Reader returns a reader that begins with the oldest batch.
func (s *Spool) Reader() *Reader { return &Reader{spool: s} }

// Next returns the next batch, or nil if there is none at present. On an error what cannot be read has been given up
// and counted; the next call goes on behind it.
func (r *Reader) Next() (*pb.FlowBatch, error) {
	s := r.spool
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		i := slices.Index(s.segments, r.on)
		if i < 0 { // not begun yet, or what it stood on is gone
			if len(s.segments) == 0 {
				r.on = nil
				return nil, nil
			}
			i = 0
			r.on, r.offset = s.segments[0], 0
		}
		if r.offset >= r.on.size {
			if i+1 == len(s.segments) {
				return nil, nil
			}
			r.on, r.offset = s.segments[i+1], 0
			continue
		}
		f, err := r.on.read(r.offset)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.on.path, errors.Join(err, s.giveUp(i)))
		}
		r.offset += frameSize(f.body)
		if f.sequence <= s.acked || f.sequence <= r.last {
			continue
		}
		r.last = f.sequence
		batch := &pb.FlowBatch{}
		if err := proto.Unmarshal(f.body, batch); err != nil {
			return nil, fmt.Errorf("%s: batch %d: %w", r.on.path, f.sequence, err) // its checksum is right: not our format
		}
		return batch, nil
	}
}
