package harness

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
)

// TB is what the harness needs of a test; *testing.T and *testing.B have it,
// and Main gives it to a program.
type TB interface {
	Helper()
	Name() string
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Failed() bool
	Cleanup(func())
}

// Main runs a program on the harness, with its cleanups also run when it
// fails, panics or is interrupted, and returns the exit status.
func Main(name string, run func(TB)) int {
	p := &program{name: name}
	done := make(chan any, 1)
	go func() {
		defer func() { done <- recover() }()
		run(p)
	}()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	select {
	case crash := <-done:
		p.cleanup()
		if crash != nil {
			panic(crash)
		}
	case sig := <-interrupted:
		p.Errorf("stopped by %v", sig)
		p.cleanup()
	}
	if p.failed {
		return 1
	}
	return 0
}

type program struct {
	name     string
	failed   bool
	cleanups []func()
}

func (p *program) Helper()          {}
func (p *program) Name() string     { return p.name }
func (p *program) Failed() bool     { return p.failed }
func (p *program) Cleanup(f func()) { p.cleanups = append(p.cleanups, f) }

func (p *program) Logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

func (p *program) Errorf(format string, args ...any) {
	p.failed = true
	fmt.Fprintf(os.Stderr, p.name+": "+format+"\n", args...)
}

func (p *program) Fatalf(format string, args ...any) {
	p.Errorf(format, args...)
	runtime.Goexit()
}

func (p *program) cleanup() {
	for _, f := range slices.Backward(p.cleanups) {
		f()
	}
}
