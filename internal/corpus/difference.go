package corpus

import "strings"

// Diff returns the lines of two texts: those of both indented, those of the first only with -, those of the second only
// with +. It is as short as can be for texts of some hundred lines; for longer ones it is what is left between the lines
// with which both begin and end.
func Diff(want, got string) string {
	a, b := strings.SplitAfter(want, "\n"), strings.SplitAfter(got, "\n")
	head := 0
	for head < len(a) && head < len(b) && a[head] == b[head] {
		head++
	}
	tail := 0
	for tail < len(a)-head && tail < len(b)-head && a[len(a)-1-tail] == b[len(b)-1-tail] {
		tail++
	}
	var out strings.Builder
	put := func(sign string, lines []string) {
		for _, l := range lines {
			if l != "" {
				out.WriteString(sign + strings.TrimSuffix(l, "\n") + "\n")
			}
		}
	}
	const shown = 2 // lines around a difference
	put("  ", a[max(0, head-shown):head])
	between(a[head:len(a)-tail], b[head:len(b)-tail], put)
	put("  ", a[len(a)-tail:min(len(a), len(a)-tail+shown)])
	return strings.TrimSuffix(out.String(), "\n")
}

// between writes the difference of the middle parts by their longest common subsequence.
func between(a, b []string, put func(string, []string)) {
	const limit = 1000
	if len(a) > limit || len(b) > limit {
		put("- ", a)
		put("+ ", b)
		return
	}
	common := make([][]int, len(a)+1) // of what is left from there on
	for i := range common {
		common[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			put("  ", a[i:i+1])
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && common[i+1][j] >= common[i][j+1]:
			put("- ", a[i:i+1])
			i++
		default:
			put("+ ", b[j:j+1])
			j++
		}
	}
}
