package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// didYouMean returns a hint that names what may have been meant, or nothing.
func didYouMean(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return fmt.Sprintf(". Did you mean %s?", strings.Join(names, " or "))
}

// similarFlags returns the flags of cmd whose names are close to name.
func similarFlags(cmd *cobra.Command, name string) []string {
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	near := similar(name, names)
	for i := range near {
		near[i] = "--" + near[i]
	}
	return near
}

// similar returns those of the candidates that name may be a slip of, closest first, at most three.
func similar(name string, candidates []string) []string {
	type scored struct {
		name string
		d    int
	}
	var near []scored
	for _, c := range candidates {
		d := distance(strings.ToLower(name), strings.ToLower(c))
		switch {
		case d <= max(1, (len(name)+1)/3):
		case len(name) > 2 && strings.HasPrefix(c, name):
		default:
			continue
		}
		near = append(near, scored{c, d})
	}
	slices.SortStableFunc(near, func(a, b scored) int {
		if a.d != b.d {
			return a.d - b.d
		}
		return strings.Compare(a.name, b.name)
	})
	var names []string
	for _, s := range near[:min(3, len(near))] {
		names = append(names, s.name)
	}
	return names
}

// distance is the number of letters to insert, remove or replace to make b out of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := diagonal
			if a[i-1] != b[j-1] {
				replace++
			}
			diagonal = row[j]
			row[j] = min(replace, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}
