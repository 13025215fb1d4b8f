// Command bench measures the life cycle of containers under several OCI
// runtimes, in turn in one run, and prints a table in Markdown.
//
//	bench [-rounds N] -rootfs DIR NAME=PATH...
//
// The first runtime is the one that the others are compared with. Rounds are
// interleaved, since the machine's speed changes while they go on: quote the
// ratios, which are medians of the rounds' ratios.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sample is what one measurement took.
type sample struct {
	wall, cpu time.Duration
	memory    int64 // KiB, the peak of the runtime's own process
}

type runtime struct {
	name, path, state string
	// ctx ends when the program is told to end.
	ctx context.Context
}

// command returns the command line of a verb, with its own state directory.
func (r *runtime) command(args ...string) *exec.Cmd {
	return exec.CommandContext(r.ctx, r.path, append([]string{"--root", r.state}, args...)...)
}

// remove deletes what an interrupted measurement left, and the state directory.
func (r *runtime) remove() {
	r.ctx = context.Background()
	entries, _ := os.ReadDir(r.state)
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), "bench") {
			if err := r.command("delete", "--force", e.Name()).Run(); err != nil {
				fmt.Fprintf(os.Stderr, "bench: %s delete %s: %v\n", r.name, e.Name(), err)
			}
		}
	}
	os.RemoveAll(r.state)
}

func (r *runtime) measure(args ...string) (sample, error) {
	return r.take(r.command(args...), args)
}

// peak is measure by way of a small process: the memory of one counts from
// before its exec, and this program has as much as a runtime.
func (r *runtime) peak(args ...string) (sample, error) {
	self, err := os.Executable()
	if err != nil {
		return sample{}, err
	}
	words := append([]string{"peak", r.path, "--root", r.state}, args...)
	out, err := exec.CommandContext(r.ctx, self, words...).Output()
	if err != nil {
		return sample{}, fmt.Errorf("%s %s: %w", r.name, strings.Join(args, " "), err)
	}
	var s sample
	_, err = fmt.Sscan(string(out), &s.memory)
	return s, err
}

// printPeak runs a command and prints its peak memory in KiB.
func printPeak(args []string) error {
	cmd := exec.Command(args[0], args[1:]...)
	if err := cmd.Run(); err != nil {
		return err
	}
	fmt.Println(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss)
	return nil
}

func (r *runtime) take(cmd *exec.Cmd, args []string) (sample, error) {
	// A container that is created keeps what we give it: no pipes.
	log, err := os.CreateTemp(r.state, "stderr")
	if err != nil {
		return sample{}, err
	}
	defer os.Remove(log.Name())
	defer log.Close()
	cmd.Stderr = log
	begun := time.Now()
	err = cmd.Run()
	wall := time.Since(begun)
	if err != nil {
		complaint, _ := os.ReadFile(log.Name())
		return sample{}, fmt.Errorf("%s %s: %w: %s", r.name, strings.Join(args, " "), err, complaint)
	}
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return sample{wall: wall, cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), memory: usage.Maxrss}, nil
}

// bench is one run of the program.
type bench struct {
	work, rootfs string
	runtimes     []*runtime
	parallel     int
}

// scenario is what is measured once per round and runtime.
type scenario struct {
	name   string
	metric string // of sample: wall, cpu or memory
	run    func(*runtime) (sample, error)
	// before and after are not measured; nil = nothing.
	before, after func(*runtime) error
}

func (b *bench) scenarios() []scenario {
	runTrue := func(bundle string) func(*runtime) (sample, error) {
		return func(r *runtime) (sample, error) { return r.measure("run", "--bundle", b.bundle(bundle), "bench") }
	}
	version := func(r *runtime) (sample, error) { return r.measure("--version") }
	created := func(r *runtime) error {
		_, err := r.measure("create", "--bundle", b.bundle("sleep"), "bench")
		return err
	}
	up := func(r *runtime) error {
		if err := created(r); err != nil {
			return err
		}
		_, err := r.measure("start", "bench")
		return err
	}
	down := func(r *runtime) error { _, err := r.measure("delete", "--force", "bench"); return err }
	return []scenario{
		{"start of the program (--version)", "wall", version, nil, nil},
		{"start of the program (--version)", "cpu", version, nil, nil},
		{"create + start + delete -f", "wall", b.lifeCycle, nil, nil},
		{"create + start + delete -f", "cpu", b.lifeCycle, nil, nil},
		{"create", "wall", func(r *runtime) (sample, error) { return r.measure("create", "--bundle", b.bundle("sleep"), "bench") }, nil, down},
		{"start", "wall", func(r *runtime) (sample, error) { return r.measure("start", "bench") }, created, down},
		{"delete -f", "wall", func(r *runtime) (sample, error) { return r.measure("delete", "--force", "bench") }, up, nil},
		{"run true", "wall", runTrue("true"), nil, nil},
		{"run true", "cpu", runTrue("true"), nil, nil},
		{"run true with a seccomp profile", "wall", runTrue("seccomp"), nil, nil},
		{"run true with a seccomp profile", "cpu", runTrue("seccomp"), nil, nil},
		{"run true, peak memory", "memory", func(r *runtime) (sample, error) { return r.peak("run", "--bundle", b.bundle("true"), "bench") }, nil, nil},
		{"exec true", "wall", func(r *runtime) (sample, error) { return r.measure("exec", "bench", "/bin/true") }, up, down},
		{"exec true", "cpu", func(r *runtime) (sample, error) { return r.measure("exec", "bench", "/bin/true") }, up, down},
		{"state", "wall", func(r *runtime) (sample, error) { return r.measure("state", "bench") }, up, down},
		{fmt.Sprintf("%d creates at a time, and deletes", b.parallel), "wall", b.crowd, nil, nil},
	}
}

func (b *bench) copyOf(name, path string) (string, error) {
	program, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer program.Close()
	dir := filepath.Join(b.work, "programs", name)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", err
	}
	to := filepath.Join(dir, filepath.Base(path))
	copied, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(copied, program)
	return to, errors.Join(err, copied.Close())
}

func (b *bench) bundle(name string) string { return filepath.Join(b.work, name) }

func (b *bench) lifeCycle(r *runtime) (sample, error) {
	var sum sample
	for _, args := range [][]string{
		{"create", "--bundle", b.bundle("sleep"), "bench"},
		{"start", "bench"},
		{"delete", "--force", "bench"},
	} {
		s, err := r.measure(args...)
		if err != nil {
			return sum, err
		}
		sum.wall, sum.cpu = sum.wall+s.wall, sum.cpu+s.cpu
	}
	return sum, nil
}

// crowd creates many containers at a time and deletes them again.
func (b *bench) crowd(r *runtime) (sample, error) {
	each := func(args func(id string) []string) error {
		errs := make([]error, b.parallel)
		var all sync.WaitGroup
		for i := range b.parallel {
			all.Go(func() { _, errs[i] = r.measure(args(fmt.Sprintf("bench-%d", i))...) })
		}
		all.Wait()
		return errors.Join(errs...)
	}
	begun := time.Now()
	err := each(func(id string) []string { return []string{"create", "--bundle", b.bundle("sleep"), id} })
	// Also after a failure: nothing is to be left behind.
	err = errors.Join(err, each(func(id string) []string { return []string{"delete", "--force", id} }))
	return sample{wall: time.Since(begun)}, err
}

// round measures a scenario once with each runtime, beginning with another one
// each time.
func (b *bench) round(s *scenario, first int) ([]sample, error) {
	samples := make([]sample, len(b.runtimes))
	for i := range b.runtimes {
		n := (first + i) % len(b.runtimes)
		r := b.runtimes[n]
		if s.before != nil {
			if err := s.before(r); err != nil {
				return nil, err
			}
		}
		var err error
		samples[n], err = s.run(r)
		if s.after != nil {
			err = errors.Join(err, s.after(r))
		}
		if err != nil {
			return nil, err
		}
	}
	return samples, nil
}

// prepare makes the bundles: they differ in their process and seccomp profile.
func (b *bench) prepare() error {
	for name, args := range map[string][]string{"true": {"/bin/true"}, "sleep": {"/bin/sleep", "1000"}, "seccomp": {"/bin/true"}} {
		dir := b.bundle(name)
		if err := os.Mkdir(dir, 0o711); err != nil {
			return err
		}
		config := configuration(b.rootfs, args)
		if name == "seccomp" {
			profile, err := seccompProfile()
			if err != nil {
				return err
			}
			config["linux"].(map[string]any)["seccomp"] = profile
		}
		data, err := json.MarshalIndent(config, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) measureAll(rounds int) error {
	printHead(b.runtimes)
	for _, s := range b.scenarios() {
		n := rounds
		if s.name[0] >= '0' && s.name[0] <= '9' { // a crowd is a hundred rounds in one
			n = max(3, rounds/10)
		}
		results := make([][]float64, len(b.runtimes))
		for i := range n + 1 {
			samples, err := b.round(&s, i)
			if err != nil {
				return err
			}
			if i == 0 {
				continue // caches are cold
			}
			for k, sample := range samples {
				results[k] = append(results[k], sample.value(s.metric))
			}
		}
		printRow(s, results)
	}
	return b.printPhases(rounds)
}

func (s *sample) value(metric string) float64 {
	switch metric {
	case "cpu":
		return float64(s.cpu.Microseconds()) / 1000
	case "memory":
		return float64(s.memory) / 1024
	}
	return float64(s.wall.Microseconds()) / 1000
}

// memory is where state is kept on a usual host: on a tmpfs.
func memory() string {
	for _, dir := range []string{"/run", "/dev/shm"} {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err == nil && st.Type == unix.TMPFS_MAGIC {
			return dir
		}
	}
	return "/run"
}

func run() error {
	rounds := flag.Int("rounds", 30, "rounds of each scenario")
	rootfs := flag.String("rootfs", "", "root file system with /bin/true and /bin/sleep")
	parallel := flag.Int("parallel", 100, "containers that are created at a time")
	flag.Parse()
	if *rootfs == "" || flag.NArg() == 0 {
		return errors.New("usage: bench [-rounds N] -rootfs DIR NAME=PATH [NAME=PATH]")
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	work, err := os.MkdirTemp("", "vzrun-bench.")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	b := &bench{work: work, rootfs: *rootfs, parallel: *parallel}
	for _, arg := range flag.Args() {
		name, path, ok := strings.Cut(arg, "=")
		if !ok {
			return fmt.Errorf("%q is not NAME=PATH", arg)
		}
		state, err := os.MkdirTemp(memory(), "vzrun-bench."+name+".")
		if err != nil {
			return err
		}
		// A copy for each, written alike: how a program lies in the page cache
		// decides about a hundred page faults and two megabytes.
		if path, err = b.copyOf(name, path); err != nil {
			return err
		}
		r := &runtime{name, path, state, ctx}
		defer r.remove()
		b.runtimes = append(b.runtimes, r)
	}
	if err := b.prepare(); err != nil {
		return err
	}
	return b.measureAll(*rounds)
}

func main() {
	work := run
	if len(os.Args) > 2 && os.Args[1] == "peak" {
		work = func() error { return printPeak(os.Args[2:]) }
	}
	if err := work(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
