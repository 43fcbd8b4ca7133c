package flows

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"bulkhead/internal/tinydisk"
)

func TestSpoolOnAFullDisk(t *testing.T) {
	tinydisk.Run(t, 512<<10, func(t *testing.T, d *tinydisk.Disk) {
		dir := filepath.Join(d.Dir, "flows")
		s := open(t, dir, 256<<10) // segments of 32 KiB
		var added, lost uint64
		add := func() error {
			err := s.Append(some(100), 0)
			added += 100
			if err != nil {
				lost += 100
			}
			return err
		}
		for s.Backlog() < 100<<10 {
			if err := add(); err != nil {
				t.Fatal(err)
			}
		}
		// The oldest make room for the newest, as far as nobody else takes it.
		d.Fill()
		for range 20 {
			_ = add() // whether it has found room is counted below
			d.Fill()
		}
		if s.Lost() == 0 || s.Backlog() == 0 {
			t.Errorf("%d records lost and %d bytes left, want some of both", s.Lost(), s.Backlog())
		}
		d.Free()
		if err := add(); err != nil {
			t.Fatalf("after there is room again: %v", err)
		}
		ever := s.Lost()
		var arrived, told, last uint64
		for _, b := range all(t, s) {
			if b.Sequence <= last {
				t.Errorf("batch %d after %d", b.Sequence, last)
			}
			last = b.Sequence
			arrived += uint64(len(b.Records))
			told += b.Lost
		}
		if arrived+told != added || told != ever {
			t.Errorf("%d records arrive and %d are told as lost of %d; the spool counts %d lost", arrived, told, added, ever)
		}
	})
}

func TestSpoolThatBeginsOnAFullDisk(t *testing.T) {
	tinydisk.Run(t, 512<<10, func(t *testing.T, d *tinydisk.Disk) {
		dir := filepath.Join(d.Dir, "flows")
		d.Fill()
		s := open(t, dir, minSpool)
		instance := s.Instance()
		if instance == "" {
			t.Error("there is no instance to tell the controller")
		}
		if err := s.Append(some(3), 0); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("append: %v, want ENOSPC", err)
		}
		if s.Lost() != 3 {
			t.Errorf("%d lost, want 3", s.Lost())
		}
		d.Free()
		if err := s.Append(some(2), 0); err != nil {
			t.Fatal(err)
		}
		if got := all(t, s); len(got) != 1 || got[0].Lost != 3 || s.Instance() != instance {
			t.Errorf("batches %v of %s, want one of %s that tells of 3", got, s.Instance(), instance)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		// What is on a full disk can still be sent, and makes room.
		d.Fill()
		s = open(t, dir, minSpool)
		if got := all(t, s); len(got) != 1 || s.Instance() != instance {
			t.Fatalf("batches %v of %s after a restart, want one of %s", got, s.Instance(), instance)
		}
		if err := s.Ack(1); err != nil || s.Backlog() != 0 {
			t.Errorf("after the acknowledgement %d bytes are left: %v", s.Backlog(), err)
		}
	})
}

func TestSpoolOnADiskThatFailed(t *testing.T) {
	tinydisk.Run(t, 512<<10, func(t *testing.T, d *tinydisk.Disk) {
		dir := filepath.Join(d.Dir, "flows")
		s := open(t, dir, minSpool)
		if err := s.Append(some(2), 0); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.Append(some(2), 0); !errors.Is(err, os.ErrClosed) {
			t.Errorf("append after the end: %v", err)
		}
		d.ReadOnly(true)
		s = open(t, dir, minSpool)
		if err := s.Append(some(5), 0); !errors.Is(err, unix.EROFS) || s.Lost() != 5 {
			t.Errorf("append: %v and %d lost; want EROFS and 5", err, s.Lost())
		}
		d.ReadOnly(false)
		if err := s.Append(some(1), 0); err != nil {
			t.Fatal(err)
		}
		if got := all(t, s); len(got) != 2 || got[1].Lost != 5 {
			t.Errorf("batches %v, want the one from before and one that tells of 5", got)
		}
	})
}
