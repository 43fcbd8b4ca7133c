package prove

import "bulkhead/internal/core/model"

// matchIndex finds the matches that may mean an end by its labels: those of which every term asks for a label to have one of
// some values are listed by label and value, and the others apart. Most rules name an app, and an end has one.
type matchIndex struct {
	byLabel map[[2]string][]int32
	others  []int32
}

func (s *space) indexMatches() {
	asked := map[[2]string]int{} // how many terms ask for a label and value
	for _, m := range s.matches {
		for i := range m.Terms {
			if sel := m.Terms[i].Selector; sel != nil {
				for k := range sel.Requirements {
					for _, label := range labelsOf(&sel.Requirements[k]) {
						asked[label]++
					}
				}
			}
		}
	}
	s.byLabels = matchIndex{byLabel: map[[2]string][]int32{}}
	for n, m := range s.matches {
		var list [][2]string
		keyed := !m.Any
		for i := range m.Terms {
			rarest := rarestOf(m.Terms[i].Selector, asked)
			keyed = keyed && rarest != nil
			list = append(list, rarest...)
		}
		if !keyed {
			s.byLabels.others = append(s.byLabels.others, int32(n))
			continue
		}
		for _, label := range list {
			s.byLabels.byLabel[label] = append(s.byLabels.byLabel[label], int32(n))
		}
	}
}

// labelsOf lists what labels a requirement asks for one of; none if it asks for something else.
func labelsOf(r *model.Requirement) [][2]string {
	if r.Op != model.OpIn {
		return nil
	}
	out := make([][2]string, len(r.Values))
	for i, v := range r.Values {
		out[i] = [2]string{r.Key, v}
	}
	return out
}

// rarestOf returns labels of which the selector asks for one, those that the fewest terms ask for; nil if there are none.
func rarestOf(sel *model.Selector, asked map[[2]string]int) [][2]string {
	if sel == nil {
		return nil
	}
	var best [][2]string
	fewest := 0
	for i := range sel.Requirements {
		labels, n := labelsOf(&sel.Requirements[i]), 0
		for _, label := range labels {
			n += asked[label]
		}
		if len(labels) > 0 && (best == nil || n < fewest) {
			best, fewest = labels, n
		}
	}
	return best
}

// meant says of each match whether it means the identity.
func (s *space) meant(id *model.Identity) []bool {
	out := make([]bool, len(s.matches))
	look := func(list []int32) {
		for _, n := range list {
			out[n] = s.matches[n].Matches(id)
		}
	}
	look(s.byLabels.others)
	for k, v := range id.Labels {
		look(s.byLabels.byLabel[[2]string{k, v}])
	}
	return out
}
