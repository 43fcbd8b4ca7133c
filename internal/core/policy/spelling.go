package policy

import (
	"strings"
)

// didYouMean returns `, did you mean "x"?` with the candidate that was most likely meant, or "" if none is near.
func didYouMean(word string, candidates []string) string {
	if best := nearest(word, candidates); best != "" {
		return `, did you mean "` + best + `"?`
	}
	return ""
}

// nearest returns the candidate within a third of the word's length in edits, or one that differs in case or in a
// plural only; the first of equals.
func nearest(word string, candidates []string) string {
	best, least := "", max(1, len(word)/3)+1
	for _, c := range candidates {
		if strings.EqualFold(c, word) {
			return c
		}
		if d := edits(strings.ToLower(word), strings.ToLower(c), least); d < least {
			best, least = c, d
		}
	}
	return best
}

// edits is the number of insertions, deletions, replacements and swaps of neighbours that turn a into b (optimal
// string alignment), or at least limit if it is no smaller.
func edits(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	rows := [3][]int{make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)}
	for j := range rows[1] {
		rows[1][j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, prev, cur := rows[(i-1)%3], rows[i%3], rows[(i+1)%3]
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
	}
	return rows[(len(a)+1)%3][len(b)]
}

// alternatives joins names for a sentence: "a", "a or b", "a, b or c".
func alternatives(names []string) string { return enumerate(names, " or ") }

// both joins names for a sentence: "a", "a and b", "a, b and c".
func both(names []string) string { return enumerate(names, " and ") }

func enumerate(names []string, last string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + last + names[len(names)-1]
}
