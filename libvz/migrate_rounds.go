package libvz

import (
	"cmp"
	"os"
	"slices"
	"time"
)

// Round is one pass over the memory of a guest that runs. What it writes meanwhile
// is sent again by the next one, or when it is stopped.
type Round struct {
	// Pages were sent: in the first round all, then those that were written since
	// the round before began.
	Pages uint64 `json:"pages"`
	Bytes int64  `json:"bytes"`
	// Frozen is for how long the guest stood still so that the pages could be taken,
	// Dump how long it was until they were on the disk here, and Took until the other
	// side had them: in seconds.
	Frozen float64 `json:"frozen"`
	Dump   float64 `json:"dump"`
	Took   float64 `json:"took"`
}

// roundRule decides when there have been rounds enough.
type roundRule struct {
	// budget is for how long the guest may stand still; 0 = nobody has said.
	budget time.Duration
	// rest says that what is left of the memory can come later, and does not count.
	rest bool
}

const (
	// fewPages are sent in less time than it takes to stop a guest.
	fewPages = 256
	// maxRounds bounds the chain that the destination has to read.
	maxRounds = 30
	// A round that sends more than this part of the fewest pages before it has
	// gained nothing; so many of them in a row, and the next ones will not either.
	gainless, gainlessRounds = 0.9, 2
	// maxAgain bounds what is sent again, in times of what the first round sent, and
	// with it what the destination must have room for.
	maxAgain = 2
	// roundsRoom is how much it may come to, in times of the memory: the first round,
	// what is sent again, one round that sent more than was expected, and the rest.
	roundsRoom = 1 + maxAgain + 1 + 1
	// fixedShare is for how long a guest stands still whatever its memory, in times of
	// what the quickest round took to dump. See docs/decisions/0024.
	fixedShare = 12
)

// verdict is what comes after a round.
type verdict string

const (
	anotherRound verdict = "another round"
	stopGuest    verdict = "stop the guest"
	// outOfReach: the budget will not be kept.
	outOfReach verdict = "out of reach"
)

// after decides what comes after rounds, of which there is one at least.
func (r roundRule) after(rounds []Round) verdict {
	last := rounds[len(rounds)-1]
	done := last.Pages <= fewPages || exhausted(rounds)
	if r.budget == 0 {
		if done {
			return stopGuest
		}
		return anotherRound
	}
	fixed, memory := r.standstill(rounds)
	switch {
	case fixed+memory <= r.budget:
		return stopGuest
	case done || fixed > r.budget: // rounds make only the memory less
		return outOfReach
	}
	return anotherRound
}

// standstill estimates for how long the guest will stand still if it is stopped now:
// for all but its memory, and for that. As many pages are written as in the last
// round, and sent as fast as before.
func (r roundRule) standstill(rounds []Round) (fixed, memory time.Duration) {
	seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	quickest := slices.MinFunc(rounds, func(a, b Round) int { return cmp.Compare(a.Dump, b.Dump) })
	fixed = seconds(fixedShare * quickest.Dump)
	speed := 0.0 // bytes per second
	for _, round := range rounds {
		if round.Took > 0 {
			speed = max(speed, float64(round.Bytes)/round.Took)
		}
	}
	if r.rest || speed == 0 {
		return fixed, 0
	}
	left := rounds[len(rounds)-1].Pages * uint64(os.Getpagesize())
	return fixed, seconds(float64(left) / speed)
}

// exhausted tells whether more rounds are of no use: they send no less than those
// before, or as much has been sent again as there is memory.
func exhausted(rounds []Round) bool {
	if len(rounds) >= maxRounds {
		return true
	}
	fewest, without := rounds[0].Pages, 0
	again := rounds[len(rounds)-1].Pages // the next one will send as many
	for _, round := range rounds[1:] {
		again += round.Pages
		if float64(round.Pages) > gainless*float64(fewest) {
			without++
		} else {
			without = 0
		}
		fewest = min(fewest, round.Pages)
	}
	return without >= gainlessRounds || len(rounds) > 1 && again > maxAgain*rounds[0].Pages
}
