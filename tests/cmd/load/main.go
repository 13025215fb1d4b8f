// Command load is the client of a service that is checkpointed, restored or
// moved while it works: one connection, one question after the other, and each
// answer must be the right one.
//
//	load lines LOG TEMPLATE ANSWER CMD...  write lines to a command, such as ssh or
//	                          a database's shell, and read its answers. %d in
//	                          TEMPLATE is the number of the step; ANSWER is a whole
//	                          line, and one with another number is an error. In the
//	                          end it is told to "exit"
//	load http LOG URL WANT    requests over one connection that is kept; %d as above,
//	                          WANT must be in the body
//	load download LOG URL     one body, read slowly; in the end "sha256=SUM"
//	load talk LOG ADDR        lines to a server that numbers them, such as `vzguest echo`
//	load redis LOG ADDR KEY   append numbers to a list, whose length is the answer
//	load memcached LOG ADDR   count, store and look up what was stored before
//	load check LOG            compare what the service has (numbers on standard
//	                          input, one a line) with what LOG says was answered:
//	                          none is missing, none is there twice
//
//	load serve ADDR THREADS   a server for `load talk`: each line is answered by
//	                          another one of so many threads
//
// LOG gets a line for each answer: number, nanoseconds since 1970, nanoseconds that
// it took. "connected" is printed after the first, and in the end, which is that of
// standard input or SIGTERM, "steps=N max_wait_ms=N". A step that was begun is
// finished before, so that client and service agree; after a connection that broke,
// the service may know one step more.
//
// Nothing but the standard library is used, so that it builds without the module's
// dependencies.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// interval is between two steps, so that a client does not take a whole
	// processor from what it talks to.
	interval = 5 * time.Millisecond
	// patience is longer than any freeze that a test may cause.
	patience = 120 * time.Second
)

var errUsage = errors.New("usage: load lines|http|download|talk|redis|memcached|check|serve ARG..., see the source")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	verb, n := "", len(args)
	if n > 1 {
		verb = args[0]
	}
	switch {
	case verb == "check" && n == 2:
		return check(args[1], os.Stdin)
	case verb == "serve" && n == 3:
		return serve(ctx, args[1], args[2])
	case verb == "download" && n == 3:
		return client(ctx, args[1], func() (session, error) { return newDownload(args[2]) })
	case verb == "lines" && n > 4:
		return client(ctx, args[1], func() (session, error) { return newLines(args[2], args[3], args[4:]) })
	case verb == "http" && n == 4:
		return client(ctx, args[1], func() (session, error) { return newHTTP(args[2], args[3]) })
	case verb == "redis" && n == 4:
		return client(ctx, args[1], func() (session, error) { return newRedis(args[2], args[3]) })
	case verb == "talk" && n == 3:
		return client(ctx, args[1], func() (session, error) { return newTalk(args[2]) })
	case verb == "memcached" && n == 3:
		return client(ctx, args[1], func() (session, error) { return newMemcached(args[2]) })
	}
	return errUsage
}

// session is one connection to a service.
type session interface {
	// step asks once and checks the answer; io.EOF says that all is done.
	step(n int) error
	// close ends it, and returns what is to be printed.
	close() (string, error)
}

// client takes step after step until it is told to end.
func client(ctx context.Context, path string, open func() (session, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	s, err := open()
	if err != nil {
		return err
	}
	steps, longest, err := repeat(ctx, s, log)
	said, closeErr := s.close()
	if err = errors.Join(err, closeErr); err != nil {
		return err
	}
	fmt.Printf("%ssteps=%d max_wait_ms=%d\n", said, steps, longest.Milliseconds())
	return nil
}

func repeat(ctx context.Context, s session, log io.Writer) (steps int, longest time.Duration, err error) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for n := 1; ; n++ {
		begun := time.Now()
		if err := s.step(n); errors.Is(err, io.EOF) {
			return steps, longest, nil
		} else if err != nil {
			return steps, longest, fmt.Errorf("step %d, %d s after it began: %w", n, int(time.Since(begun).Seconds()), err)
		}
		took := time.Since(begun)
		steps, longest = n, max(longest, took)
		if _, err := fmt.Fprintln(log, n, time.Now().UnixNano(), took.Nanoseconds()); err != nil {
			return steps, longest, err
		}
		if n == 1 {
			// Tests wait for this line before they disturb the connection.
			fmt.Println("connected")
		}
		select {
		case <-ctx.Done():
			return steps, longest, nil
		case <-tick.C:
		}
	}
}

// numbered puts the number of a step into a text.
func numbered(text string, n int) string {
	return strings.ReplaceAll(text, "%d", strconv.Itoa(n))
}

// check compares the numbers that a service has with those that were answered.
func check(path string, has io.Reader) error {
	log, err := os.Open(path)
	if err != nil {
		return err
	}
	defer log.Close()
	answered, err := count(log)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	stored, err := count(has)
	if err != nil {
		return fmt.Errorf("the service: %w", err)
	}
	if stored != answered {
		return fmt.Errorf("%d steps were answered, the service has %d", answered, stored)
	}
	fmt.Printf("steps=%d\n", answered)
	return nil
}

// count reads lines that begin with 1, 2, 3 and so on, and returns the last.
func count(r io.Reader) (int, error) {
	last := 0
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		first, _, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		n, err := strconv.Atoi(first)
		if err != nil || n != last+1 {
			return 0, fmt.Errorf("%q follows %d", lines.Text(), last)
		}
		last = n
	}
	if last == 0 {
		return 0, errors.New("nothing there")
	}
	return last, lines.Err()
}
