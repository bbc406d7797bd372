// Command failures copies what go test prints, and says once more at the end
// which tests failed and what they said first: of a long log the end is what is
// read, and often all that is kept. Its input's end is not its own to judge:
// the exit status that counts is that of go test.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "failures:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	c := collector{said: map[string]*failure{}}
	for {
		line, err := lines.ReadString('\n')
		if _, err := io.WriteString(out, line); err != nil {
			return err
		}
		if line != "" {
			c.add(line)
		}
		if errors.Is(err, io.EOF) {
			_, err := io.WriteString(out, c.summary())
			return err
		}
		if err != nil {
			return err
		}
	}
}
