package portmap

import (
	"fmt"
	"strings"

	"bulkhead/internal/core/hostpolicy"
)

// Lists numbers the lists of alternatives that the entries of one policy set name, equal lists once. The zero value has
// none.
type Lists struct {
	numbers map[string]int
	lists   [][]hostpolicy.Alternative
}

// Number returns the number of the list, 0 for an empty one. The first is 1.
func (l *Lists) Number(when []hostpolicy.Alternative) int {
	if len(when) == 0 {
		return 0
	}
	var key strings.Builder
	for _, a := range when {
		fmt.Fprintf(&key, "%q %q %q %d %q\n", a.Process.Unit, a.Process.Path, a.Process.User, a.Verdict, a.Rule)
	}
	n, ok := l.numbers[key.String()]
	if !ok {
		if l.numbers == nil {
			l.numbers = map[string]int{}
		}
		l.lists = append(l.lists, when)
		n = len(l.lists)
		l.numbers[key.String()] = n
	}
	return n
}

// Of numbers the lists of every cell of a function.
func (l *Lists) Of(f hostpolicy.Func) {
	for i := range f {
		l.Number(f[i].When)
	}
}

// All returns the lists; that of number n is at n-1.
func (l *Lists) All() [][]hostpolicy.Alternative { return l.lists }

// Size returns how many alternatives the lists have together.
func (l *Lists) Size() (n int) {
	for _, list := range l.lists {
		n += len(list)
	}
	return n
}
