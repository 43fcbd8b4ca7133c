package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// echo answers every line with itself; a line that begins with '!' is bad.
type echo struct{ delay bool }

func (e echo) judge(dst []byte, lines [][]byte, ok []bool) []byte {
	for i, line := range lines {
		if e.delay && rand.IntN(50) == 0 {
			time.Sleep(time.Millisecond) // let the other workers run ahead
		}
		dst = append(append(append(dst, '<'), line...), ">\n"...)
		ok[i] = !bytes.HasPrefix(line, []byte("!"))
	}
	return dst
}

func (e echo) tooLong(dst []byte) []byte { return append(dst, "<too long>\n"...) }

func echoes(n int) []lineJudge {
	judges := make([]lineJudge, n)
	for i := range judges {
		judges[i] = echo{delay: n > 1}
	}
	return judges
}

func TestJudgeLines(t *testing.T) {
	long := strings.Repeat("x", maxLine-1)
	for name, tt := range map[string]struct {
		in, want string
		stats    lineStats
	}{
		"nothing":         {"", "", lineStats{}},
		"no line feed":    {"a", "<a>\n", lineStats{Lines: 1}},
		"lines":           {"a\nb\n", "<a>\n<b>\n", lineStats{Lines: 2}},
		"blank lines":     {"\n a\n\n \t\n\r\nb\n\n", "< a>\n<b>\n", lineStats{Lines: 2}},
		"DOS":             {"a\r\nb\r\n", "<a>\n<b>\n", lineStats{Lines: 2}},
		"byte-order mark": {"\xef\xbb\xbfa\n\xef\xbb\xbfb", "<a>\n<\xef\xbb\xbfb>\n", lineStats{Lines: 2}},
		"bad lines":       {"a\n!b\nc\n!d\n", "<a>\n<!b>\n<c>\n<!d>\n", lineStats{Lines: 4, Bad: 2, FirstBad: 2}},
		"bad after many": {strings.Repeat("a\n", 3*maxTogether+1) + "!b\n!c\n", strings.Repeat("<a>\n", 3*maxTogether+1) + "<!b>\n<!c>\n",
			lineStats{Lines: 3*maxTogether + 3, Bad: 2, FirstBad: 3*maxTogether + 2}},
		"longest":       {"a\n" + long + "\nb", "<a>\n<" + long + ">\n<b>\n", lineStats{Lines: 3}},
		"too long":      {"a\n" + long + "xxx\nb\n", "<a>\n<too long>\n<b>\n", lineStats{Lines: 3, Bad: 1, FirstBad: 2}},
		"much too long": {strings.Repeat(long, 3) + "\nb\n", "<too long>\n<b>\n", lineStats{Lines: 2, Bad: 1, FirstBad: 1}},
		"too long at the end": {"a\n" + long + "xx", "<a>\n<too long>\n",
			lineStats{Lines: 2, Bad: 1, FirstBad: 2}},
	} {
		for _, how := range []struct {
			name string
			wrap func(io.Reader) io.Reader
		}{
			{"whole", func(r io.Reader) io.Reader { return r }},
			{"error with data", iotest.DataErrReader},
			{"halves", iotest.HalfReader},
		} {
			t.Run(name+", "+how.name, func(t *testing.T) {
				var out bytes.Buffer
				stats, err := judgeLines(t.Context(), how.wrap(strings.NewReader(tt.in)), &out, echoes(2), nil)
				if err != nil {
					t.Fatal(err)
				}
				if out.String() != tt.want {
					t.Errorf("wrote %.80q, want %.80q", out.String(), tt.want)
				}
				if stats != tt.stats {
					t.Errorf("stats %+v, want %+v", stats, tt.stats)
				}
			})
		}
	}
}

func TestJudgeLinesKeepsOrder(t *testing.T) {
	var in, want bytes.Buffer
	for i := range 200_000 {
		fmt.Fprintf(&in, "line %d\n", i)
		fmt.Fprintf(&want, "<line %d>\n", i)
	}
	var out bytes.Buffer
	stats, err := judgeLines(t.Context(), &in, &out, echoes(4), nil)
	if err != nil {
		t.Fatal(err)
	}
	if stats.Lines != 200_000 || !bytes.Equal(out.Bytes(), want.Bytes()) {
		t.Errorf("%d lines, in order: %v", stats.Lines, bytes.Equal(out.Bytes(), want.Bytes()))
	}
}

// TestJudgeLinesAnswersAtOnce holds that a line is answered before the next one is there, as in a pipe.
func TestJudgeLinesAnswersAtOnce(t *testing.T) {
	inRead, inWrite := io.Pipe()
	outRead, outWrite := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := judgeLines(t.Context(), inRead, outWrite, echoes(2), nil)
		done <- err
	}()
	for range 3 {
		if _, err := io.WriteString(inWrite, "a\n"); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4)
		if _, err := io.ReadFull(outRead, got); err != nil || string(got) != "<a>\n" {
			t.Fatalf("%q, %v", got, err)
		}
	}
	inWrite.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestJudgeLinesFails(t *testing.T) {
	broken := errors.New("broken")
	t.Run("reader", func(t *testing.T) {
		var out bytes.Buffer
		in := io.MultiReader(strings.NewReader("a\nb\n"), iotest.ErrReader(broken))
		stats, err := judgeLines(t.Context(), in, &out, echoes(2), nil)
		if !errors.Is(err, broken) || stats.Lines != 2 || out.String() != "<a>\n<b>\n" {
			t.Errorf("%v after %+v: %q", err, stats, out.String())
		}
	})
	t.Run("writer", func(t *testing.T) {
		in := strings.NewReader(strings.Repeat("a line of text\n", 1_000_000))
		_, err := judgeLines(t.Context(), in, failingWriter{broken}, echoes(2), nil)
		if !errors.Is(err, broken) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("interrupted while reading", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		in, feed := io.Pipe()
		defer feed.Close()
		time.AfterFunc(10*time.Millisecond, cancel)
		if _, err := judgeLines(ctx, in, io.Discard, echoes(2), nil); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

// FuzzJudgeLines holds the splitter to the obvious way of splitting, however the input is cut.
func FuzzJudgeLines(f *testing.F) {
	f.Add([]byte("a\nb\n"), uint8(1))
	f.Add([]byte("\n\r\n a\r\n!b"), uint8(2))
	f.Add([]byte("\xef\xbb\xbfa"), uint8(7))
	f.Fuzz(func(t *testing.T, in []byte, cut uint8) {
		var want bytes.Buffer
		lines := int64(0)
		for line := range bytes.SplitSeq(bytes.TrimPrefix(in, byteOrderMark), []byte("\n")) {
			line = bytes.TrimSuffix(line, []byte("\r"))
			if len(bytes.TrimSpace(line)) > 0 {
				fmt.Fprintf(&want, "<%s>\n", line)
				lines++
			}
		}
		var out bytes.Buffer
		r := &cutReader{in, max(3, int(cut))} // a byte-order mark comes whole
		stats, err := judgeLines(t.Context(), r, &out, []lineJudge{echo{}}, nil)
		if err != nil || out.String() != want.String() || stats.Lines != lines {
			t.Errorf("%q: %q (%d lines), %v, want %q (%d lines)", in, out.String(), stats.Lines, err, want.String(), lines)
		}
	})
}

// cutReader gives at most n bytes at a time.
type cutReader struct {
	rest []byte
	n    int
}

func (r *cutReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), r.n)], r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
