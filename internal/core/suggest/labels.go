package suggest

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"bulkhead/internal/core/model"
)

// The keys that are proposed, in this order.
const (
	keyRole = "role"
	keyApp  = "app"
	keyEnv  = "env"
)

// margin is how far the best value of a label must be ahead of the second.
const margin = 0.1

// clue is one reason for one value of a label. Clues of different kinds add up; of one kind the strongest counts.
type clue struct {
	kind   string
	value  string
	weight float64
	why    string
}

// labelling is what every workload will be labelled if the proposal is accepted.
type labelling struct {
	effective []model.Labels // by party; nil for addresses
	added     []model.Labels // by party: what the proposal adds to its document
	proposals []LabelProposal
	abstained []Abstention
}

type labeller struct {
	r        *records
	out      *labelling
	min      float64
	like     *likeness
	sums     []float64
	hosts    map[string]bool           // names of hosts that carry units
	values   map[string]map[string]int // label key → value → how many workloads have it
	byStem   map[string][]partyID
	byApp    map[string][]partyID
	incoming [][]int32 // by party: edges that tell what it serves
	outgoing [][]int32
}

// inferLabels proposes role, app and env for workloads that lack them.
func inferLabels(r *records, least float64) *labelling {
	l := newLabeller(r, least)
	for _, id := range l.order() {
		l.label(id)
	}
	return l.out
}

func newLabeller(r *records, least float64) *labeller {
	n := len(r.parties)
	l := &labeller{
		r: r, min: least, like: newLikeness(r), sums: make([]float64, n),
		out:   &labelling{effective: make([]model.Labels, n), added: make([]model.Labels, n)},
		hosts: map[string]bool{}, values: map[string]map[string]int{keyRole: {}, keyApp: {}, keyEnv: {}},
		byStem: map[string][]partyID{}, byApp: map[string][]partyID{},
		incoming: make([][]int32, n), outgoing: make([][]int32, n),
	}
	for id := range r.parties {
		in := r.parties[id].instance
		if in == nil {
			continue
		}
		if in.IsUnit() {
			l.hosts[in.Host] = true
		}
		for key, values := range l.values {
			if v, ok := in.Labels[key]; ok {
				values[v]++
			}
		}
		l.byStem[stem(in.Name)] = append(l.byStem[stem(in.Name)], partyID(id))
		if app := in.Labels[keyApp]; app != "" {
			l.byApp[app] = append(l.byApp[app], partyID(id))
		}
	}
	for i := range r.edges {
		if e := &r.edges[i]; e.fate != FateSuspicious && e.fate != FateDenied {
			l.incoming[e.dst] = append(l.incoming[e.dst], int32(i))
			l.outgoing[e.src] = append(l.outgoing[e.src], int32(i))
		}
	}
	return l
}

// order lists workloads by name, hosts before units: a unit inherits what its host is given.
func (l *labeller) order() []partyID {
	var ids []partyID
	for id := range l.r.parties {
		if l.r.parties[id].owned() {
			ids = append(ids, partyID(id))
		}
	}
	slices.SortFunc(ids, func(a, b partyID) int {
		if u, v := l.r.parties[a].instance.IsUnit(), l.r.parties[b].instance.IsUnit(); u != v {
			if u {
				return 1
			}
			return -1
		}
		return l.r.compareParties(a, b)
	})
	return ids
}

func (l *labeller) label(id partyID) {
	in := l.r.parties[id].instance
	labels := in.Labels.With(nil)
	if host, ok := l.r.byName[in.Host]; ok && in.IsUnit() {
		labels = l.out.added[host].With(labels)
	}
	l.out.effective[id] = labels
	var near []neighbour
	searched := false
	for _, key := range []string{keyRole, keyApp, keyEnv} {
		if _, ok := labels[key]; ok {
			continue
		}
		if key != keyEnv && l.hosts[in.Name] {
			l.abstain(id, key, "it carries units, which have labels of their own")
			continue
		}
		var clues []clue
		switch key {
		case keyRole:
			clues = l.roleClues(id)
		case keyApp:
			clues = l.appClues(id)
		case keyEnv:
			clues = l.envClues(id)
		}
		clues = append(clues, l.siblingClues(id, key)...)
		if key != keyEnv {
			if !searched {
				near, searched = l.like.nearest(id, l.sums), true
			}
			if c, ok := l.like.vote(id, near, key); ok {
				clues = append(clues, c)
			}
		}
		l.decide(id, key, clues)
	}
}

// decide weighs the clues: independent kinds of clue for one value add up as probabilities do.
func (l *labeller) decide(id partyID, key string, clues []clue) {
	clues = slices.DeleteFunc(clues, func(c clue) bool { return c.value == "" || model.CheckLabelValue(c.value) != nil })
	strongest := map[[2]string]clue{}
	for _, c := range clues {
		k := [2]string{c.value, c.kind}
		if before, ok := strongest[k]; !ok || c.weight > before.weight {
			strongest[k] = c
		}
	}
	clues = slices.DeleteFunc(clues, func(c clue) bool { return strongest[[2]string{c.value, c.kind}] != c })
	clues = slices.Compact(clues)
	doubt := map[string]float64{}
	for _, c := range clues {
		if _, ok := doubt[c.value]; !ok {
			doubt[c.value] = 1
		}
		doubt[c.value] *= 1 - c.weight
	}
	var values []string
	for v := range doubt {
		values = append(values, v)
	}
	slices.SortFunc(values, func(a, b string) int {
		if d := doubt[a] - doubt[b]; math.Abs(d) > 1e-9 {
			return int(math.Copysign(1, d))
		}
		return strings.Compare(a, b)
	})
	confidence := func(v string) float64 { return math.Round(min(1-doubt[v], .99)*100) / 100 }
	switch {
	case len(values) == 0:
		l.abstain(id, key, "nothing in its name, processes, ports or neighbours tells")
		return
	case confidence(values[0]) < l.min:
		l.abstain(id, key, fmt.Sprintf("%s is the best guess, but only at %.2f", values[0], confidence(values[0])))
		return
	case len(values) > 1 && confidence(values[0])-confidence(values[1]) < margin:
		l.abstain(id, key, fmt.Sprintf("%s (%.2f) and %s (%.2f) are too close to tell", values[0], confidence(values[0]), values[1], confidence(values[1])))
		return
	}
	value := values[0]
	var why []string
	for _, c := range clues {
		if c.value == value {
			why = append(why, c.why)
		}
	}
	l.out.proposals = append(l.out.proposals, LabelProposal{
		Workload: l.r.parties[id].name, Key: key, Value: value, Confidence: confidence(value), Why: strings.Join(why, "; "),
	})
	l.out.effective[id][key] = value
	l.out.added[id] = l.out.added[id].With(model.Labels{key: value})
}

func (l *labeller) abstain(id partyID, key, why string) {
	l.out.abstained = append(l.out.abstained, Abstention{Workload: l.r.parties[id].name, Key: key, Why: why})
}

// ownWords are the words of the name that is the workload's own: a unit's, not its host's.
func (l *labeller) ownWords(id partyID) []string {
	in := l.r.parties[id].instance
	if !in.IsUnit() {
		return nameWords(in.Name)
	}
	words := nameWords(unitStem(in.Unit))
	if own := strings.TrimPrefix(in.Name, in.Host+"/"); unitStem(own) != unitStem(in.Unit) {
		for _, w := range nameWords(unitStem(own)) {
			if !slices.Contains(words, w) {
				words = append(words, w)
			}
		}
	}
	return words
}

// lastRole returns the last word that means a role: in "records-db" it is db that says what it is.
func lastRole(words []string) (string, bool) {
	for i := len(words) - 1; i >= 0; i-- {
		if roleOfWord[words[i]] != "" {
			return words[i], true
		}
	}
	return "", false
}

func (l *labeller) roleClues(id partyID) []clue {
	var clues []clue
	if w, ok := lastRole(l.ownWords(id)); ok {
		clues = append(clues, clue{"name", l.spell(keyRole, roleOfWord[w]), .75, fmt.Sprintf("its name says %q", w)})
	}
	in := l.r.parties[id].instance
	ports := map[model.PortRange]bool{}
	var processes, clients []string
	for _, s := range in.Listening {
		ports[model.PortRange{Proto: s.Proto, Lo: s.Port, Hi: s.Port}] = true
		processes = insert(processes, s.Process)
	}
	for _, i := range l.incoming[id] {
		ports[l.r.edges[i].ports()] = true
		for _, s := range l.r.edges[i].servers {
			processes = insert(processes, s)
		}
	}
	for _, i := range l.outgoing[id] {
		for _, s := range l.r.edges[i].clients {
			clients = insert(clients, s)
		}
	}
	for _, p := range processes {
		if housekeeping[p] {
			continue
		}
		if role := processRoles[p]; role != "" {
			clues = append(clues, clue{"process", l.spell(keyRole, role), .7, p + " answers there"})
		} else if w, ok := lastRole(nameWords(p)); ok {
			clues = append(clues, clue{"process", l.spell(keyRole, roleOfWord[w]), .6, p + " answers there"})
		}
	}
	clues = append(clues, l.portClues(ports)...)
	for _, p := range clients {
		if w, ok := lastRole(nameWords(p)); ok && !housekeeping[p] {
			clues = append(clues, clue{"client", l.spell(keyRole, roleOfWord[w]), .35, p + " runs there"})
		}
	}
	return clues
}

func (l *labeller) portClues(ports map[model.PortRange]bool) []clue {
	var sorted []model.PortRange
	for p := range ports {
		sorted = append(sorted, p)
	}
	slices.SortFunc(sorted, comparePorts)
	var clues []clue
	for _, p := range sorted {
		if k, ok := portTable[p]; ok && k.role != "" {
			what := p.String()
			if k.service != "" {
				what = k.service + " (" + what + ")"
			}
			clues = append(clues, clue{"port", l.spell(keyRole, k.role), k.weight, "it serves " + what})
		}
	}
	return clues
}

func (l *labeller) appClues(id partyID) []clue {
	words := l.ownWords(id)
	role, hasRole := lastRole(words)
	var left []string
	for i := len(words) - 1; i >= 0; i-- {
		w := words[i]
		if w == role {
			role = ""
			continue
		}
		if envOfWord[w] == "" {
			left = append([]string{w}, left...)
		}
	}
	if len(left) == 0 {
		return nil
	}
	var clues []clue
	for _, app := range sortedKeys(l.values[keyApp]) {
		appWords := nameWords(app)
		if len(appWords) > 0 && containsAll(words, appWords) {
			clues = append(clues, clue{"name", app, .85, fmt.Sprintf("its name says %q", app)})
		}
	}
	if len(clues) == 0 {
		for _, w := range left {
			if app, ok := l.appStarting(w); ok {
				clues = append(clues, clue{"name", app, .7, fmt.Sprintf("%q in its name begins the name of app %s alone", w, app)})
			}
		}
	}
	// A letter or two say nothing unless the rest of the name does.
	if app := slug(strings.Join(left, "-")); len(clues) == 0 && (len(app) > 2 || len(app) == 2 && hasRole) {
		clues = append(clues, clue{"name", app, .6, fmt.Sprintf("%q is what its name says apart from the role", app)})
	}
	return clues
}

// appStarting returns the only app in use whose name starts with the word.
func (l *labeller) appStarting(word string) (string, bool) {
	found := ""
	for _, app := range sortedKeys(l.values[keyApp]) {
		if len(word) >= 3 && strings.HasPrefix(strings.ToLower(app), word) {
			if found != "" {
				return "", false
			}
			found = app
		}
	}
	return found, found != ""
}

func (l *labeller) envClues(id partyID) []clue {
	var clues []clue
	for _, w := range nameWords(l.r.parties[id].name) {
		if env := envOfWord[w]; env != "" {
			clues = append(clues, clue{"name " + env, l.spell(keyEnv, env), .9, fmt.Sprintf("its name says %q", w)})
		}
	}
	if app := l.out.effective[id][keyApp]; app != "" {
		if env, n := l.unanimous(l.byApp[app], keyEnv); n >= 2 {
			clues = append(clues, clue{"app", env, .6, fmt.Sprintf("all %d labelled workloads of app %s are in %s", n, app, env)})
		}
	}
	return clues
}

// siblingClues asks the workloads whose names differ from this one's in digits only.
func (l *labeller) siblingClues(id partyID, key string) []clue {
	s := stem(l.r.parties[id].name)
	if len(s) < 3 || len(l.ownWords(id)) == 0 || !strings.ContainsFunc(l.r.parties[id].name, func(r rune) bool { return r >= '0' && r <= '9' }) {
		return nil
	}
	value, n := l.unanimous(l.byStem[s], key)
	if n == 0 {
		return nil
	}
	return []clue{{"siblings", value, .8, fmt.Sprintf("%s of the same name but for numbers %s", count(n, "workload"), verb(n, "has it", "have it"))}}
}

// unanimous returns the value of the key that all of the workloads that carry the key agree on, and how many do.
func (l *labeller) unanimous(ids []partyID, key string) (string, int) {
	value, n := "", 0
	for _, id := range ids {
		v, ok := l.r.parties[id].instance.Labels[key]
		switch {
		case !ok:
		case n > 0 && v != value:
			return "", 0
		default:
			value, n = v, n+1
		}
	}
	return value, n
}

// spell returns the word for a role or environment that the inventory uses already, else the word itself.
func (l *labeller) spell(key, value string) string {
	synonyms := roleWords[value]
	if key == keyEnv {
		synonyms = envWords[value]
	}
	best, most := value, l.values[key][value]
	for _, used := range sortedKeys(l.values[key]) {
		if n := l.values[key][used]; n > most && slices.Contains(synonyms, strings.ToLower(used)) {
			best, most = used, n
		}
	}
	return best
}

func containsAll(words, wanted []string) bool {
	for _, w := range wanted {
		if !slices.Contains(words, w) {
			return false
		}
	}
	return true
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func verb(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

func comparePorts(a, b model.PortRange) int {
	switch {
	case a.Proto != b.Proto:
		return int(a.Proto) - int(b.Proto)
	case a.Lo != b.Lo:
		return int(a.Lo) - int(b.Lo)
	}
	return int(a.Hi) - int(b.Hi)
}
