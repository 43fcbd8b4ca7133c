package status

import (
	"maps"
	"slices"
	"sync"
)

// Problems is what is wrong at this moment, each under a key. The zero value is ready; its methods may be called from
// several goroutines.
type Problems struct {
	mu    sync.Mutex
	texts map[string]string
}

// Report says what is wrong under the key; an empty text says that it is well again.
func (p *Problems) Report(key, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if text == "" {
		delete(p.texts, key)
		return
	}
	if p.texts == nil {
		p.texts = map[string]string{}
	}
	p.texts[key] = text
}

// List returns the texts, sorted by key.
func (p *Problems) List() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]string, 0, len(p.texts))
	for _, key := range slices.Sorted(maps.Keys(p.texts)) {
		out = append(out, p.texts[key])
	}
	return out
}
