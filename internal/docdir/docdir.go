// Package docdir reads directories of documents, for the command line and for an agent that stands alone, and tells when
// one has changed. What the documents say is not its concern.
package docdir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/internal/core/policy"
)

// ErrEmpty says that there is no document in a directory.
var ErrEmpty = errors.New("holds no documents: there is no *.yaml or *.yml file in it")

const (
	maxDepth = 32       // directories within each other
	maxBytes = 64 << 20 // of all files together
)

// Read reads every file in the directory, and in those below it, that ends in .yaml or .yml, in the order of their names.
// Symbolic links are followed; what is hidden (its name begins with a dot) is left out. Files are named as they are reached from dir.
// An error wraps ErrEmpty if there is no such file, or is that of the operating system.
func Read(dir string) ([]policy.File, error) {
	r := read(dir)
	return r.files, r.err
}

func read(dir string) *reader {
	r := &reader{left: maxBytes}
	r.err = r.dir(dir, nil)
	switch {
	case r.err != nil:
		r.files = nil
	case len(r.files) == 0:
		r.err = fmt.Errorf("%s %w", dir, ErrEmpty)
	}
	return r
}

type reader struct {
	files  []policy.File
	err    error
	stamps []string // of the files: equal as long as nobody writes to them
	left   int64
}

// dir reads a directory; above are the real paths of those above it.
func (r *reader) dir(dir string, above []string) error {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	if slices.Contains(above, real) || len(above) >= maxDepth {
		return fmt.Errorf("%s: a link leads back to a directory above it, or directories are more than %d deep", dir, maxDepth)
	}
	above = append(above[:len(above):len(above)], real)
	entries, err := os.ReadDir(real)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		if hidden(e.Name()) {
			continue
		}
		kind := e.Type()
		if kind == os.ModeSymlink {
			info, err := os.Stat(name)
			switch {
			case err == nil:
				kind = info.Mode().Type()
			case documents(name):
				return err
			default:
				continue // a link to nowhere that could not have been a document
			}
		}
		switch {
		case kind.IsDir():
			err = r.dir(name, above)
		case !documents(name):
		case !kind.IsRegular(): // reading it could take for ever
			err = fmt.Errorf("%s: is no regular file", name)
		default:
			err = r.file(name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) file(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	r.stamps = append(r.stamps, fmt.Sprint(st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim))
	data, err := io.ReadAll(io.LimitReader(f, r.left+1))
	if err != nil {
		return err
	}
	if r.left -= int64(len(data)); r.left < 0 {
		return fmt.Errorf("%s: the documents are larger than %d MiB together", name, maxBytes>>20)
	}
	r.files = append(r.files, policy.File{Name: name, Data: data})
	return nil
}

func hidden(name string) bool { return strings.HasPrefix(name, ".") }

func documents(name string) bool {
	ext := filepath.Ext(name)
	return ext == ".yaml" || ext == ".yml"
}

// settle is how long ReadSettled waits between two looks, and looks how often it looks at most.
const (
	settle = 20 * time.Millisecond
	looks  = 50
)

// ReadSettled is Read for a directory that somebody may be changing at this moment: what it returns was there twice, one
// time after the other, so that neither half a file nor half of the files counts.
func ReadSettled(ctx context.Context, dir string) ([]policy.File, error) {
	return readSettled(ctx, dir, read)
}

func readSettled(ctx context.Context, dir string, read func(dir string) *reader) ([]policy.File, error) {
	before := read(dir)
	for range looks {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(settle):
		}
		now := read(dir)
		if before.same(now) {
			return now.files, now.err
		}
		before = now
	}
	return nil, fmt.Errorf("%s does not stop changing", dir)
}

func (r *reader) same(o *reader) bool {
	return slices.Equal(r.stamps, o.stamps) && fmt.Sprint(r.err) == fmt.Sprint(o.err) &&
		slices.EqualFunc(r.files, o.files, func(a, b policy.File) bool { return a.Name == b.Name && bytes.Equal(a.Data, b.Data) })
}
