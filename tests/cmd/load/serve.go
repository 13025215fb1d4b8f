package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"syscall"
)

// question is a line that one thread is to answer.
type question struct {
	n      int
	text   string
	answer chan string
}

// serve answers as `vzguest echo` does, with threads that are the kernel's own and
// must stay the same ones.
func serve(ctx context.Context, addr, threads string) error {
	count, err := strconv.Atoi(threads)
	if err != nil || count < 1 {
		return errUsage
	}
	pool := make([]chan question, count)
	for i := range pool {
		pool[i] = make(chan question)
		go thread(pool[i])
	}
	// A listener of Go is one of MPTCP where the kernel has it.
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go converse(conn, pool)
	}
}

func converse(conn net.Conn, pool []chan question) {
	defer conn.Close()
	in := bufio.NewScanner(conn)
	for n := 1; in.Scan(); n++ {
		q := question{n, in.Text(), make(chan string)}
		pool[n%len(pool)] <- q
		if _, err := fmt.Fprintln(conn, <-q.answer); err != nil {
			return
		}
	}
}

// thread has a number, a name and a stack that are looked at with each question.
func thread(questions chan question) {
	runtime.LockOSThread()
	id := syscall.Gettid()
	for q := range questions {
		if now := syscall.Gettid(); now != id {
			q.answer <- fmt.Sprintf("thread %d is %d now", id, now)
			continue
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", id)); err != nil {
			q.answer <- err.Error()
			continue
		}
		q.answer <- fmt.Sprintf("%d %s", q.n, q.text)
	}
}
