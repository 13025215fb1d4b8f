package libvz

import (
	"slices"
	"testing"
	"time"
)

// sent are rounds of so many pages each, a MiB and a half in a second, which took 10 ms
// to dump.
func sent(pages ...uint64) []Round {
	var rounds []Round
	for _, n := range pages {
		bytes := int64(n) * 4096
		rounds = append(rounds, Round{Pages: n, Bytes: bytes, Dump: 0.01, Took: float64(bytes) / (1.5 * (1 << 20))})
	}
	return rounds
}

func TestWhatComesAfterRounds(t *testing.T) {
	const none = time.Duration(0)
	for name, test := range map[string]struct {
		budget time.Duration
		rest   bool
		rounds []Round
		want   verdict
	}{
		"a guest that is small":                {none, false, sent(200), stopGuest},
		"after the first":                      {none, false, sent(10000), anotherRound},
		"it becomes less":                      {none, false, sent(10000, 5000), anotherRound},
		"it becomes less, slowly":              {none, false, sent(10000, 5000, 4000), anotherRound},
		"few are left":                         {none, false, sent(10000, 5000, 256), stopGuest},
		"no gain once":                         {none, false, sent(10000, 1000, 990), anotherRound},
		"no gain twice":                        {none, false, sent(10000, 1000, 990, 950), stopGuest},
		"no gain, then some, then none":        {none, false, sent(10000, 1000, 990, 800, 790), anotherRound},
		"it becomes more":                      {none, false, sent(10000, 1000, 1500, 2000), stopGuest},
		"all of it is written":                 {none, false, sent(10000, 10000), anotherRound},
		"all of it is written again":           {none, false, sent(10000, 10000, 10000), stopGuest},
		"slowly, for long":                     {none, false, sent(10000, 8000, 7000), stopGuest},
		"the last of the rounds":               {none, false, sent(slices.Repeat([]uint64{100000, 1000, 500}, 10)...), stopGuest},
		"hybrid is no different without":       {none, true, sent(10000, 5000), anotherRound},
		"within the budget":                    {2 * time.Second, false, sent(10000, 384), stopGuest},
		"within a greater one, earlier":        {time.Minute, false, sent(10000, 5000), stopGuest},
		"not yet within it":                    {2 * time.Second, false, sent(10000, 5000), anotherRound},
		"not within it, and no gain":           {time.Second, false, sent(10000, 1000, 990, 950), outOfReach},
		"few are left, and still not within":   {130 * time.Millisecond, false, sent(10000, 200), outOfReach},
		"less than it takes without memory":    {110 * time.Millisecond, false, sent(10000), outOfReach},
		"hybrid: the memory does not count":    {130 * time.Millisecond, true, sent(10000), stopGuest},
		"hybrid: what it takes without does":   {110 * time.Millisecond, true, sent(10000), outOfReach},
		"no time was measured, so none counts": {time.Second, false, []Round{{Pages: 1000, Bytes: 1}}, stopGuest},
	} {
		rule := roundRule{budget: test.budget, rest: test.rest}
		if got := rule.after(test.rounds); got != test.want {
			fixed, memory := rule.standstill(test.rounds)
			t.Errorf("%s: %s, not %s (%v and %v)", name, got, test.want, fixed, memory)
		}
	}
}

// TestRoundsEnd: whatever a guest writes, there is an end, and the destination has
// room for what is sent.
func TestRoundsEnd(t *testing.T) {
	const all = 1 << 20
	for name, writes := range map[string]func(n int) uint64{
		"all of it":      func(int) uint64 { return all },
		"a half":         func(int) uint64 { return all / 2 },
		"less and less":  func(n int) uint64 { return all >> min(n/3, 12) },
		"now and then":   func(n int) uint64 { return []uint64{all, 300}[n%2] },
		"a little less":  func(n int) uint64 { return all - uint64(n)*1000 },
		"hardly any, on": func(int) uint64 { return fewPages + 1 },
	} {
		rounds, total := sent(all), uint64(all)
		for (roundRule{}).after(rounds) == anotherRound {
			next := writes(len(rounds))
			rounds = append(rounds, sent(next)...)
			total += next
		}
		total += all // at most, when it is stopped
		if len(rounds) > maxRounds || total > roundsRoom*all {
			t.Errorf("%s: %d rounds, %d of %d pages", name, len(rounds), total, all)
		}
	}
}
