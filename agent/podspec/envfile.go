package podspec

import (
	"bytes"
	"fmt"
	"strings"
)

// envFileValue is the value of key in a file of variables; empty where the file
// does not give it one. The format is the kubelet's
// (pkg/kubelet/util/env, ParseEnv): NAME='value' with single quotes, between
// which everything stands for itself, new lines too; comments and empty lines in
// between. What follows the key is not looked at.
func envFileValue(content []byte, key string) (string, error) {
	p := envFileParser{rest: content}
	for p.next() {
		line := strings.TrimLeft(p.text, " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, found := strings.Cut(line, "=")
		switch {
		case !found:
			return "", p.errorf("missing '='")
		case strings.TrimRight(name, " \t") == "":
			return "", p.errorf("empty variable name")
		case strings.TrimRight(name, " \t") != name:
			return "", p.errorf("whitespace before '=' is not allowed")
		case strings.HasPrefix(value, " "), strings.HasPrefix(value, "\t"):
			// As in a shell, this is an empty value and something that follows.
			if name == key {
				return "", nil
			}
			continue
		case !strings.HasPrefix(value, "'"):
			return "", p.errorf("value must be enclosed in single quotes")
		}
		text, err := p.quoted(value[1:])
		if err != nil {
			return "", err
		}
		if name == key {
			return text, nil
		}
	}
	return "", nil
}

// envFileParser goes through a file line by line.
type envFileParser struct {
	rest []byte
	text string // the line, without its end
	line int
}

func (p *envFileParser) next() bool {
	if len(p.rest) == 0 {
		return false
	}
	line, rest, _ := bytes.Cut(p.rest, []byte{'\n'})
	p.text, p.rest = strings.TrimSuffix(string(line), "\r"), rest
	p.line++
	return true
}

// quoted reads on to the closing quote; after it only a comment may follow.
func (p *envFileParser) quoted(rest string) (string, error) {
	start := p.line
	var value strings.Builder
	for {
		text, after, closed := strings.Cut(rest, "'")
		value.WriteString(text)
		if closed {
			if after = strings.TrimLeft(after, " \t"); after != "" && after[0] != '#' {
				return "", p.errorf("unexpected content after closing quote")
			}
			return value.String(), nil
		}
		value.WriteByte('\n')
		if !p.next() {
			return "", fmt.Errorf("invalid environment variable format starting at line %d: unclosed single quote", start)
		}
		rest = p.text
	}
}

func (p *envFileParser) errorf(what string) error {
	return fmt.Errorf("invalid environment variable format at line %d: %s", p.line, what)
}
