package main

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/vzrun/vzrun/libvz"
)

// topSample is what all containers had used at one moment.
type topSample struct {
	at  time.Time
	all []libvz.Overview
}

// topRow is what one container uses. Rates are nil until there are two samples
// of it.
type topRow struct {
	ID          string   `json:"id"`
	Status      string   `json:"status"`
	CPU         *float64 `json:"cpu"` // per cent of one processor
	CPUs        float64  `json:"cpus,omitempty"`
	Memory      uint64   `json:"memory"` // bytes
	MemoryLimit uint64   `json:"memory_limit,omitempty"`
	Swap        uint64   `json:"swap"`
	Tasks       uint64   `json:"tasks"`
	Read        *float64 `json:"read"` // bytes per second
	Written     *float64 `json:"written"`
	Used        float64  `json:"cpu_time"` // seconds of processor time since its start
	Uptime      float64  `json:"uptime"`   // seconds
}

// topReport is a table's contents. Containers that do not run are only counted.
type topReport struct {
	Time       time.Time `json:"time"`
	Interval   float64   `json:"interval"` // seconds, that rates are of; 0 = none yet
	Stopped    int       `json:"stopped"`
	Containers []topRow  `json:"containers"`
}

// compareSamples finds what was used between two samples.
func compareSamples(before, after topSample) topReport {
	r := topReport{Time: after.at, Containers: []topRow{}}
	if !before.at.IsZero() {
		r.Interval = after.at.Sub(before.at).Seconds()
	}
	earlier := map[string]libvz.Overview{}
	for _, o := range before.all {
		earlier[o.ID] = o
	}
	for _, o := range after.all {
		if o.Load == nil {
			r.Stopped++
			continue
		}
		row := topRow{
			ID: o.ID, Status: o.Status, CPUs: o.Load.CPUs, Memory: o.Load.Memory, MemoryLimit: o.Load.MemoryLimit,
			Swap: o.Load.Swap, Tasks: o.Load.Tasks, Used: o.Load.CPU.Seconds(), Uptime: o.Uptime.Seconds(),
		}
		// Another container of that name begins anew.
		if was, found := earlier[o.ID]; found && was.Load != nil && was.Created.Equal(o.Created) && r.Interval > 0 {
			row.CPU = rate(was.Load.CPU.Seconds(), o.Load.CPU.Seconds(), r.Interval, 100)
			row.Read = rate(float64(was.Load.Read), float64(o.Load.Read), r.Interval, 1)
			row.Written = rate(float64(was.Load.Written), float64(o.Load.Written), r.Interval, 1)
		}
		r.Containers = append(r.Containers, row)
	}
	return r
}

// rate is never negative: counters of a device that was taken away are gone.
func rate(before, after, seconds, scale float64) *float64 {
	v := max(0, after-before) / seconds * scale
	return &v
}

// topOrders are what can be sorted by: the most first, but ids as they are.
func topOrders() []string { return []string{"cpu", "memory", "tasks", "io", "uptime", "id"} }

// topView is how it is looked at.
type topView struct {
	sort    string
	reverse bool
	skip    int // rows that are scrolled out
}

func (v *topView) arrange(rows []topRow) {
	slices.SortStableFunc(rows, func(a, b topRow) int {
		n := 0
		switch v.sort {
		case "cpu":
			n = cmp.Compare(known(b.CPU), known(a.CPU))
		case "memory":
			n = cmp.Compare(b.Memory, a.Memory)
		case "tasks":
			n = cmp.Compare(b.Tasks, a.Tasks)
		case "io":
			n = cmp.Compare(known(b.Read)+known(b.Written), known(a.Read)+known(a.Written))
		case "uptime":
			n = cmp.Compare(b.Uptime, a.Uptime)
		}
		if n == 0 {
			n = cmp.Compare(a.ID, b.ID)
		}
		if v.reverse {
			return -n
		}
		return n
	})
}

func known(v *float64) float64 {
	if v == nil {
		return 0
	}
	return *v
}

// topHeaderLine is the place of the columns' names on the screen.
const topHeaderLine = 3

// screen is what fits a terminal of that size: summary, keys, an empty line and
// the table.
func (v *topView) screen(r topReport, width, height int) []string {
	v.arrange(r.Containers)
	table := v.table(r)
	room := max(0, height-topHeaderLine-1)
	v.skip = max(0, min(v.skip, len(r.Containers)-room))
	rows := table[1+v.skip:]
	lines := []string{
		v.summary(r),
		"sort: (c)pu (m)emory (t)asks (i)o (u)ptime i(d), (r)everse; (q)uit",
		"",
		table[0],
	}
	lines = append(lines, rows[:min(room, len(rows))]...)
	lines = lines[:min(len(lines), height)]
	for i, l := range lines {
		lines[i] = cut(l, width)
	}
	return lines
}

func (v *topView) summary(r topReport) string {
	var cpu float64
	var memory, tasks uint64
	for _, c := range r.Containers {
		cpu += known(c.CPU)
		memory += c.Memory
		tasks += c.Tasks
	}
	return fmt.Sprintf("%s  %d running, %d stopped; cpu %.1f %%, memory %s, tasks %d",
		r.Time.Format(time.TimeOnly), len(r.Containers), r.Stopped, cpu, sizeText(memory), tasks)
}

// table is a line of names and one for each container.
func (v *topView) table(r topReport) []string {
	idWidth := len("ID")
	for _, c := range r.Containers {
		idWidth = max(idWidth, len(c.ID))
	}
	idWidth = min(idWidth, 32)
	row := func(id string, cells ...string) string {
		return fmt.Sprintf("%-*s %-8s %7s %9s %9s %5s %6s %9s %9s %10s %8s", append([]any{idWidth, cut(id, idWidth)}, anys(cells)...)...)
	}
	lines := []string{row("ID", "STATUS", "CPU%", "MEMORY", "LIMIT", "MEM%", "TASKS", "READ/s", "WRITE/s", "TIME", "UPTIME")}
	for _, c := range r.Containers {
		limit, share := "-", "-"
		if c.MemoryLimit > 0 {
			limit, share = sizeText(c.MemoryLimit), fmt.Sprintf("%.1f", 100*float64(c.Memory)/float64(c.MemoryLimit))
		}
		lines = append(lines, row(c.ID, c.Status, rateText(c.CPU, "%.1f"), sizeText(c.Memory), limit, share,
			fmt.Sprint(c.Tasks), rateSize(c.Read), rateSize(c.Written), secondsText(c.Used), uptimeText(c.Uptime)))
	}
	return lines
}

func anys(list []string) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = s
	}
	return out
}

func rateText(v *float64, format string) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf(format, *v)
}

func rateSize(v *float64) string {
	if v == nil {
		return "-"
	}
	return sizeText(*v)
}

// cut shortens a line of ASCII, and shows that it did.
func cut(s string, width int) string {
	switch {
	case len(s) <= width:
		return s
	case width < 1:
		return ""
	}
	return s[:width-1] + "+"
}

// key is one of the keyboard.
type key rune

// Keys that are no characters.
const (
	keyUp key = iota + 0xf700 // in the private area of Unicode
	keyDown
	keyPageUp
	keyPageDown
)

// press changes the view, and tells whether it is to end.
func (v *topView) press(k key) (quit bool) {
	orders := map[key]string{'c': "cpu", 'm': "memory", 't': "tasks", 'i': "io", 'u': "uptime", 'd': "id", 'n': "id"}
	const page = 10
	switch k {
	case 'q', 'Q', 3, 4: // Ctrl-C and Ctrl-D of a raw terminal
		return true
	case 'r':
		v.reverse = !v.reverse
	case 'j', keyDown:
		v.skip++
	case 'k', keyUp:
		v.skip--
	case keyPageDown:
		v.skip += page
	case keyPageUp:
		v.skip -= page
	default:
		if by := orders[k]; by != "" {
			v.sort, v.skip = by, 0
		}
	}
	return false
}

// readKeys sends the keys that are typed, until there are no more.
func readKeys(in io.Reader, keys chan<- key) {
	defer close(keys)
	r := bufio.NewReader(in)
	for {
		k, err := readKey(r)
		if err != nil {
			return
		}
		keys <- k
	}
}

func readKey(r *bufio.Reader) (key, error) {
	c, _, err := r.ReadRune()
	// A terminal sends a sequence at once; what follows alone is Escape.
	if err != nil || c != '\x1b' || r.Buffered() == 0 {
		return key(c), err
	}
	var sequence strings.Builder
	for r.Buffered() > 0 && sequence.Len() < 8 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, err
		}
		sequence.WriteByte(b)
		if b >= '@' && b <= '~' && b != '[' && b != 'O' {
			break
		}
	}
	switch sequence.String() {
	case "[A", "OA":
		return keyUp, nil
	case "[B", "OB":
		return keyDown, nil
	case "[5~":
		return keyPageUp, nil
	case "[6~":
		return keyPageDown, nil
	}
	return 0, nil
}
