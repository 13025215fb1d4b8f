package libvz

import (
	"encoding/json"
	"fmt"
	"time"
)

// Stats is what a checkpoint or a restore took. Durations that do not belong
// to the operation are zero.
type Stats struct {
	Operation string // "checkpoint" or "restore"
	// Frozen is how long the guest's tasks did not run: of a checkpoint,
	// from the first that was stopped to their end or resumption.
	Frozen time.Duration
	// Dump is the whole checkpoint, Restore the whole restore, as the
	// caller saw them.
	Dump, Restore time.Duration
	// Criu is CRIU's share of it, without the time that it waited for us.
	Criu time.Duration
	// Bytes is the size of the images, Pages how many 4 KiB pages of
	// memory are in them.
	Bytes int64
	Pages uint64
	Tasks int
	// Attempts is how often CRIU was asked: more than 1 where a race with
	// the rest of the host was lost.
	Attempts int
	// Sent is how many bytes of memory a lazy checkpoint has handed out.
	Sent int64
	// InitCPU is the share of one processor that the init of a restored
	// operating system took when it was watched, 0.0 when idle; nil where
	// nothing was watched.
	InitCPU *float64
}

// MarshalJSON writes durations as seconds.
func (s *Stats) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Operation string   `json:"operation"`
		Frozen    float64  `json:"frozen,omitempty"`
		Dump      float64  `json:"dump,omitempty"`
		Restore   float64  `json:"restore,omitempty"`
		Criu      float64  `json:"criu"`
		Bytes     int64    `json:"bytes"`
		Pages     uint64   `json:"pages"`
		Tasks     int      `json:"tasks"`
		Attempts  int      `json:"attempts,omitempty"`
		Sent      int64    `json:"sent,omitempty"`
		InitCPU   *float64 `json:"init_cpu,omitempty"`
	}{
		s.Operation, s.Frozen.Seconds(), s.Dump.Seconds(), s.Restore.Seconds(),
		s.Criu.Seconds(), s.Bytes, s.Pages, s.Tasks, s.Attempts, s.Sent, s.InitCPU,
	})
}

// Table returns the figures as rows of a name and a value for people.
func (s *Stats) Table() [][2]string {
	rows := [][2]string{{"operation", s.Operation}}
	for _, d := range []struct {
		name string
		d    time.Duration
	}{{"frozen", s.Frozen}, {"dump", s.Dump}, {"restore", s.Restore}, {"criu", s.Criu}} {
		if d.d > 0 {
			rows = append(rows, [2]string{d.name, fmt.Sprintf("%.3f s", d.d.Seconds())})
		}
	}
	return append(rows,
		[2]string{"bytes", fmt.Sprint(s.Bytes)},
		[2]string{"pages", fmt.Sprint(s.Pages)},
		[2]string{"tasks", fmt.Sprint(s.Tasks)})
}
