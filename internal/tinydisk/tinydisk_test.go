package tinydisk

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRun(t *testing.T) {
	Run(t, 64<<10, func(t *testing.T, d *Disk) {
		path := filepath.Join(d.Dir, "a")
		write := func() error { return os.WriteFile(path, []byte("hello"), 0o600) }
		if err := write(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		d.Fill()
		if err := write(); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("on a full disk: %v", err)
		}
		d.Free()
		if err := write(); err != nil {
			t.Errorf("on a disk that has room again: %v", err)
		}
		d.ReadOnly(true)
		if err := write(); !errors.Is(err, unix.EROFS) {
			t.Errorf("on a disk that can only be read: %v", err)
		}
		d.ReadOnly(false)
		if err := write(); err != nil {
			t.Errorf("on a disk that can be written again: %v", err)
		}
	})
}
