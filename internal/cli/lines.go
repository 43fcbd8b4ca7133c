package cli

import (
	"bytes"
	"context"
	"io"

	"bulkhead/internal/core/verdict"
)

// Sizes of the line reader. Memory is bounded by the chunks in flight, whatever the length of the input.
const (
	chunkSize = 256 << 10
	maxLine   = 1 << 20
)

// byteOrderMark is what some programs put before UTF-8; it is no part of the first line.
var byteOrderMark = []byte("\xef\xbb\xbf")

// lineJudge answers lines, at most maxTogether of them at a time: it appends for each the answer and its line feed to dst,
// and says in ok whether it could be read. Lines have no line feed and are valid during the call only.
type lineJudge interface {
	judge(dst []byte, lines [][]byte, ok []bool) []byte
	tooLong(dst []byte) []byte // answers a line longer than maxLine
}

// maxTogether is how many lines are answered together.
const maxTogether = verdict.BatchSize

// lineStats says what judgeLines did.
type lineStats struct {
	Lines    int64
	Bad      int64 // lines that could not be read
	FirstBad int64 // number of the first such line, from 1
}

// chunk is some whole lines on their way through the workers.
type chunk struct {
	in, out  []byte
	long     bool // instead of lines: one that is too long
	lines    int64
	bad      int64
	firstBad int64 // within the chunk, from 1
	done     chan struct{}
}

// judgeLines answers every line of r on w, in order, with one goroutine for each judge. Blank lines are left out. It
// ends with the input, or with the first error of r, w or ctx. After an error of w or ctx one goroutine may be left
// that waits for r; it ends with the next thing it reads.
func judgeLines(ctx context.Context, r io.Reader, w io.Writer, judges []lineJudge, bar *progress) (lineStats, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	inFlight := 2*len(judges) + 2 // as long as each of the queues, so that only free is ever waited for
	free := make(chan *chunk, inFlight)
	for range inFlight {
		free <- &chunk{done: make(chan struct{}, 1)}
	}
	todo := make(chan *chunk, inFlight)
	ordered := make(chan *chunk, inFlight)
	for _, j := range judges {
		go func() {
			for c := range todo {
				c.answer(j)
				c.done <- struct{}{}
			}
		}()
	}
	var readErr error // read when ordered is closed
	go func() {
		defer close(ordered)
		defer close(todo)
		readErr = readChunks(ctx, r, free, func(c *chunk) {
			ordered <- c
			todo <- c
		})
	}()
	var stats lineStats
	for {
		var c *chunk
		select {
		case c = <-ordered:
		case <-ctx.Done():
			return stats, ctx.Err()
		}
		if c == nil {
			return stats, readErr
		}
		<-c.done
		stats.count(c)
		if _, err := w.Write(c.out); err != nil {
			return stats, err
		}
		bar.add(int64(len(c.in)))
		free <- c
	}
}

// readChunks cuts r into chunks and hands them on until r ends.
func readChunks(ctx context.Context, r io.Reader, free <-chan *chunk, handOn func(*chunk)) error {
	s := splitter{r: r}
	for {
		var c *chunk
		select {
		case c = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		more, err := s.next(c)
		if err != nil || !more {
			return err
		}
		handOn(c)
	}
}

func (s *lineStats) count(c *chunk) {
	if c.firstBad > 0 && s.Bad == 0 {
		s.FirstBad = s.Lines + c.firstBad
	}
	s.Lines += c.lines
	s.Bad += c.bad
}

// answer judges the lines of the chunk.
func (c *chunk) answer(j lineJudge) {
	if c.out == nil {
		c.out = make([]byte, 0, 3*chunkSize) // an answer is about twice as long as its line
	}
	c.out = c.out[:0]
	c.lines, c.bad, c.firstBad = 0, 0, 0
	if c.long {
		c.out = j.tooLong(c.out)
		c.lines, c.bad, c.firstBad = 1, 1, 1
		return
	}
	var room [maxTogether][]byte
	lines := room[:0]
	for rest := c.in; len(rest) > 0; {
		line := rest
		if i := bytes.IndexByte(rest, '\n'); i >= 0 {
			line, rest = rest[:i], rest[i+1:]
		} else {
			rest = nil
		}
		line = bytes.TrimSuffix(line, []byte("\r"))
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		if lines = append(lines, line); len(lines) == maxTogether {
			c.answerLines(j, lines)
			lines = lines[:0]
		}
	}
	c.answerLines(j, lines)
}

func (c *chunk) answerLines(j lineJudge, lines [][]byte) {
	var ok [maxTogether]bool
	c.out = j.judge(c.out, lines, ok[:])
	for i := range lines {
		c.lines++
		if !ok[i] {
			c.bad++
			if c.firstBad == 0 {
				c.firstBad = c.lines
			}
		}
	}
}

// splitter cuts a stream into chunks of whole lines.
type splitter struct {
	r       io.Reader
	carry   []byte // the beginning of a line whose end has not been read
	started bool
	skip    bool // within a line that is too long
	eof     bool
}

// next fills c with what can be read at once, up to the end of a line. It returns false at the end of the input.
func (s *splitter) next(c *chunk) (bool, error) {
	c.long = false
	if cap(c.in) < chunkSize {
		c.in = make([]byte, 0, chunkSize)
	}
	c.in = append(c.in[:0], s.carry...)
	s.carry = s.carry[:0]
	for {
		if s.eof {
			return len(c.in) > 0, nil
		}
		if len(c.in) == cap(c.in) {
			if len(c.in) >= maxLine {
				s.skip, c.long, c.in = true, true, c.in[:0]
				return true, nil
			}
			c.in = append(make([]byte, 0, min(2*cap(c.in), maxLine)), c.in...)
		}
		read := len(c.in)
		n, err := s.r.Read(c.in[read:cap(c.in)])
		c.in = c.in[:read+n]
		switch {
		case err == io.EOF:
			s.eof = true
		case err != nil:
			return false, err
		}
		if !s.started && len(c.in) > 0 {
			s.started = true
			c.in = bytes.TrimPrefix(c.in, byteOrderMark)
		}
		if s.skip {
			i := bytes.IndexByte(c.in, '\n')
			if i < 0 {
				c.in = c.in[:0]
				continue
			}
			s.skip = false
			c.in = c.in[:copy(c.in, c.in[i+1:])]
			read = 0
		}
		if i := bytes.LastIndexByte(c.in[read:], '\n'); i >= 0 {
			end := read + i + 1
			s.carry = append(s.carry, c.in[end:]...)
			c.in = c.in[:end]
			return true, nil
		}
	}
}
