package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A phase of `run` ends with a line of the log that libcontainer writes with
// --debug, in runc and in vzrun alike.
type phase struct{ name, ends string }

func phases() []phase {
	return []phase{
		{"the runtime: its start, config.json, a sealed copy of itself, the start of the copy", "=> nsexec container setup"},
		{"stages in C: cgroups are made and joined, namespaces, two forks", "<= nsexec container setup"},
		{"Go's start in the container's first process", "child process in init()"},
		{"its configuration as JSON, keyring, network, mounts, devices", "writing sync type:procHooks"},
		{"the runtime: limits of the cgroups", "read sync type:procHooksDone"},
		{"pivot_root, masked and read-only paths", "writing sync type:procReady"},
		{"the runtime: the container's state is saved", "read sync type:procRun"},
		{"capabilities, user, seccomp program", "closing the pipe to signal completion"},
		{"the program: exec, its run and exit; cgroups and state are removed", ""},
	}
}

// phased runs a bundle once and returns how long each phase took, in
// milliseconds. A phase whose line does not come counts with the next.
func (r *runtime) phased(bundle string) ([]float64, error) {
	fifo := filepath.Join(r.state, "log")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		return nil, err
	}
	defer os.Remove(fifo)
	// Open for both, so that neither end waits for the other.
	log, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := r.command("--debug", "--log", fifo, "run", "--bundle", bundle, "bench")
	list := phases()
	ends := make([]time.Time, len(list))
	read := make(chan struct{})
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(read)
		next := 0
		for lines := bufio.NewScanner(log); lines.Scan() && lines.Text() != endOfLog; {
			for i := next; i < len(list)-1; i++ {
				if strings.Contains(lines.Text(), list[i].ends) {
					ends[i], next = time.Now(), i+1
				}
			}
		}
	}()
	err = cmd.Wait()
	ends[len(list)-1] = time.Now()
	if _, writeErr := log.WriteString(endOfLog + "\n"); writeErr != nil {
		return nil, writeErr
	}
	<-read
	if err != nil {
		return nil, fmt.Errorf("%s run: %w", r.name, err)
	}
	took := make([]float64, len(list))
	for i, end := range ends {
		if !end.IsZero() {
			took[i] = float64(end.Sub(begun).Microseconds()) / 1000
			begun = end
		}
	}
	return took, nil
}

const endOfLog = "end of the log"

// printPhases prints the medians of all phases, of those runtimes that tell.
func (b *bench) printPhases(rounds int) error {
	var told []*runtime
	for _, r := range b.runtimes {
		if r.name != "crun" { // its log has no such lines
			told = append(told, r)
		}
	}
	bundles := []string{"true", "seccomp"}
	head, line := "| phase of `run true`, ms wall |", "|---|"
	for _, name := range bundles {
		for _, r := range told {
			head += " " + r.name + map[string]string{"seccomp": ", seccomp"}[name] + " |"
			line += "---|"
		}
	}
	fmt.Printf("\n%s\n%s\n", head, line)
	// columns[bundle*runtime][phase] are all rounds' values.
	columns := make([][][]float64, len(bundles)*len(told))
	for i := range columns {
		columns[i] = make([][]float64, len(phases()))
	}
	for round := range rounds + 1 {
		for i := range columns {
			n := (round + i) % len(columns)
			took, err := told[n%len(told)].phased(b.bundle(bundles[n/len(told)]))
			if err != nil {
				return err
			}
			for k, ms := range took {
				if round > 0 { // caches are cold
					columns[n][k] = append(columns[n][k], ms)
				}
			}
		}
	}
	for k, p := range phases() {
		row := "| " + p.name + " |"
		for i := range columns {
			row += fmt.Sprintf(" %.2f |", median(columns[i][k]))
		}
		fmt.Println(row)
	}
	return nil
}
