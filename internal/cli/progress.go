package cli

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// How a progress bar behaves.
const (
	progressDelay    = time.Second // what is done sooner shows no bar
	progressInterval = 100 * time.Millisecond
	progressBlocks   = 24
)

// progress is a bar on a terminal that appears when something takes longer than a second and is wiped when it is
// done. Add may be called from several goroutines. A nil progress shows nothing.
type progress struct {
	w     io.Writer
	title string
	total int64 // 0: not known
	done  atomic.Int64
	start time.Time
	stop  chan struct{}
	wait  sync.WaitGroup
}

// newProgress starts a bar on w, if that is a terminal. The caller ends it with finish.
func newProgress(w io.Writer, title string, total int64) *progress {
	if !onTerminal(w) {
		return nil
	}
	return startProgress(w, title, total, progressDelay, progressInterval)
}

func startProgress(w io.Writer, title string, total int64, delay, interval time.Duration) *progress {
	p := &progress{w: w, title: title, total: total, start: time.Now(), stop: make(chan struct{})}
	p.wait.Go(func() {
		next := time.NewTimer(delay)
		defer next.Stop()
		shown := false
		for {
			select {
			case <-p.stop:
				if shown {
					fmt.Fprint(p.w, "\r\x1b[K")
				}
				return
			case <-next.C:
				shown = true
				fmt.Fprintf(p.w, "\r\x1b[K%s", p.line(time.Since(p.start)))
				next.Reset(interval)
			}
		}
	})
	return p
}

// add says that n more of total are done.
func (p *progress) add(n int64) {
	if p != nil {
		p.done.Add(n)
	}
}

// finish wipes the bar.
func (p *progress) finish() {
	if p != nil {
		close(p.stop)
		p.wait.Wait()
	}
}

// line draws the bar as it is after the elapsed time.
func (p *progress) line(elapsed time.Duration) string {
	done := p.done.Load()
	if p.total <= 0 {
		return fmt.Sprintf("%s  %s", p.title, span(elapsed))
	}
	share := min(1, float64(done)/float64(p.total))
	full := int(share * progressBlocks)
	s := fmt.Sprintf("%s  %s%s %3.0f %%", p.title, strings.Repeat("█", full), strings.Repeat("░", progressBlocks-full), share*100)
	if share > 0 && share < 1 {
		left := time.Duration(float64(elapsed) * (1 - share) / share)
		s += "  " + span(left) + " left"
	}
	return s
}
