package cli

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// screen is a terminal that may be read while it is written.
type screen struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s screen
		p := startProgress(&s, "judging", 200, progressDelay, progressInterval)
		p.add(50)
		time.Sleep(900 * time.Millisecond)
		synctest.Wait()
		if s.String() != "" {
			t.Errorf("shown before a second has passed: %q", s.String())
		}
		time.Sleep(150 * time.Millisecond)
		synctest.Wait()
		if want := "judging  ██████░░░░░░░░░░░░░░░░░░  25 %  3s left"; !strings.Contains(s.String(), want) {
			t.Errorf("%q, want %q", s.String(), want)
		}
		p.add(150)
		time.Sleep(time.Second)
		synctest.Wait()
		if want := "████████████████████████ 100 %"; !strings.Contains(s.String(), want) {
			t.Errorf("%q, want %q", s.String(), want)
		}
		p.finish()
		if !strings.HasSuffix(s.String(), "\r\x1b[K") {
			t.Errorf("not wiped: %q", s.String())
		}
	})
}

func TestProgressOfUnknownLength(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s screen
		p := startProgress(&s, "learning", 0, progressDelay, progressInterval)
		p.add(12345)
		time.Sleep(5 * time.Second)
		p.finish()
		if !strings.Contains(s.String(), "\r\x1b[Klearning  4s") || strings.Contains(s.String(), "%") {
			t.Errorf("%q", s.String())
		}
	})
}

func TestProgressOfWhatIsDoneSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s screen
		p := startProgress(&s, "judging", 10, progressDelay, progressInterval)
		p.add(10)
		time.Sleep(500 * time.Millisecond)
		p.finish()
		if s.String() != "" {
			t.Errorf("%q", s.String())
		}
	})
	newProgress(&bytes.Buffer{}, "to no terminal", 1).finish() // shows nothing and does not fail
}
