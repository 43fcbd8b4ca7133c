package ebpf

import (
	"sync/atomic"
	"unsafe"
)

// settings is struct settings.
type settings struct {
	OwnNetns, OwnInode, RootCgroup, Unreplied, Replied, Installed, Levels atomic.Uint64

	PathKey                                 [2]atomic.Uint64
	Beat, Patience, GlassUntil              atomic.Uint64
	Epochs                                  [2]atomic.Uint64
	NextEpoch, LastEpoch                    atomic.Uint64
	NameKey                                 [2]atomic.Uint64
	UnitsSince, RootLevel, Paths, Processes atomic.Uint32
	TTLFloor, TTLCeiling                    atomic.Uint32
}

type settingsWords [unsafe.Sizeof(settings{}) / 8]atomic.Uint64

func (s *settings) words() *settingsWords { return (*settingsWords)(unsafe.Pointer(s)) }

// beatWord is the number of the word that changes each second.
const beatWord = unsafe.Offsetof(settings{}.Beat) / 8

// memory is the settings as the programs read them. What this process has stored there it remembers: the two differ only
// if somebody else has stored something.
type memory struct {
	*settings
	own settings
}

// believe takes what the kernel holds for what this process has stored.
func (m *memory) believe() {
	for i := range m.own.words() {
		m.own.words()[i].Store(m.words()[i].Load())
	}
}

// repair stores again what this process has stored, and reports whether anything else was there.
func (m *memory) repair() (found bool) {
	for i := range m.own.words() {
		if want := m.own.words()[i].Load(); uintptr(i) != beatWord && m.words()[i].Load() != want {
			m.words()[i].Store(want)
			found = true
		}
	}
	return found
}

// put64 stores one of the own settings, there and in the kernel.
func (m *memory) put64(setting *atomic.Uint64, v uint64) {
	setting.Store(v)
	(*atomic.Uint64)(m.twin(unsafe.Pointer(setting))).Store(v)
}

// put32 is put64 for the smaller ones.
func (m *memory) put32(setting *atomic.Uint32, v uint32) {
	setting.Store(v)
	(*atomic.Uint32)(m.twin(unsafe.Pointer(setting))).Store(v)
}

// twin returns where the kernel keeps one of the own settings.
func (m *memory) twin(setting unsafe.Pointer) unsafe.Pointer {
	return unsafe.Add(unsafe.Pointer(m.settings), uintptr(setting)-uintptr(unsafe.Pointer(&m.own)))
}
