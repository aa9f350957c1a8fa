package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/pkg/ota"
)

// Action is what a device's configuration lets the server run under a name.
type Action struct {
	// Run is the program and its arguments. An argument "{key}" is the value of a
	// parameter, as one whole argument.
	Run []string `json:"run"`
	// Parameters are those that a command has to give, each with the regular
	// expression that its whole value must match.
	Parameters map[string]string `json:"parameters,omitempty"`
}

// Limits of a configuration.
const (
	MaxActions         = 64
	MaxActionArguments = 64
)

// ParameterPrefix begins the environment variable that holds a parameter; its
// name in capitals follows.
const ParameterPrefix = "OTAGENT_PARAM_"

// Config is what a Runner needs.
type Config struct {
	Actions map[string]Action
	Logs    Logs
	// Upload puts a body at an address of the device's server.
	Upload func(ctx context.Context, url string, body io.Reader) error
	// TempDir holds what is collected until it is sent; empty: the system's.
	TempDir string
}

// Runner is agent.Actions for what a configuration allows, and collect-logs. What
// it does not name is refused.
type Runner struct {
	cfg     Config
	actions map[string]action
}

type action struct {
	run        []string
	parameters map[string]*regexp.Regexp
}

var _ agent.Actions = (*Runner)(nil)

// New checks a configuration.
func New(cfg Config) (*Runner, error) {
	if len(cfg.Actions) > MaxActions {
		return nil, fmt.Errorf("%d actions: at most %d", len(cfg.Actions), MaxActions)
	}
	if cfg.TempDir == "" {
		cfg.TempDir = os.TempDir()
	}
	if err := cfg.Logs.Validate(); err != nil {
		return nil, err
	}
	r := &Runner{cfg: cfg, actions: map[string]action{}}
	for _, name := range slices.Sorted(maps.Keys(cfg.Actions)) {
		a, err := compile(name, cfg.Actions[name])
		if err != nil {
			return nil, fmt.Errorf("action %q: %w", name, err)
		}
		r.actions[name] = a
	}
	return r, nil
}

func compile(name string, a Action) (action, error) {
	if err := ota.ValidateWord("action", name); err != nil {
		return action{}, err
	}
	if name == ota.CommandReboot || name == ota.CommandCollectLogs {
		return action{}, errors.New("every agent has this command already: choose another name")
	}
	if len(a.Run) == 0 || a.Run[0] == "" || len(a.Run) > MaxActionArguments {
		return action{}, fmt.Errorf("run has %d words: want a program and at most %d arguments", len(a.Run), MaxActionArguments-1)
	}
	out := action{run: a.Run, parameters: map[string]*regexp.Regexp{}}
	for key, pattern := range a.Parameters {
		if err := ota.ValidateParameterName(key); err != nil {
			return action{}, err
		}
		re, err := regexp.Compile(`^(?:` + pattern + `)$`)
		if err != nil {
			return action{}, fmt.Errorf("parameter %s: %w", key, err)
		}
		out.parameters[key] = re
	}
	if _, isParameter := placeholder(a.Run[0]); isParameter {
		return action{}, errors.New("the program must not be a parameter")
	}
	for _, word := range a.Run[1:] {
		if key, ok := placeholder(word); ok && out.parameters[key] == nil {
			return action{}, fmt.Errorf("argument %s: there is no such parameter", word)
		}
	}
	return out, nil
}

// placeholder returns the parameter that an argument stands for.
func placeholder(word string) (key string, ok bool) {
	key, ok = strings.CutPrefix(word, "{")
	if !ok {
		return "", false
	}
	key, ok = strings.CutSuffix(key, "}")
	return key, ok && ota.ValidateParameterName(key) == nil
}

// Check implements agent.Actions.
func (r *Runner) Check(c ota.Command) error {
	if c.Name == ota.CommandCollectLogs {
		if len(c.Parameters) > 0 {
			return fmt.Errorf("command %s takes no parameters", c.Name)
		}
		return nil
	}
	a, ok := r.actions[c.Name]
	if !ok {
		allowed := append([]string{ota.CommandReboot, ota.CommandCollectLogs}, slices.Sorted(maps.Keys(r.actions))...)
		return fmt.Errorf("command %q is not allowed on this device, which has: %s", c.Name, strings.Join(allowed, ", "))
	}
	for _, key := range slices.Sorted(maps.Keys(c.Parameters)) {
		re := a.parameters[key]
		if re == nil {
			return fmt.Errorf("command %s takes no parameter %q", c.Name, key)
		}
		if v := c.Parameters[key]; !re.MatchString(v) || strings.ContainsRune(v, 0) {
			return fmt.Errorf("command %s: parameter %s = %.80q does not match %s", c.Name, key, v, r.cfg.Actions[c.Name].Parameters[key])
		}
	}
	for _, key := range slices.Sorted(maps.Keys(a.parameters)) {
		if _, given := c.Parameters[key]; !given {
			return fmt.Errorf("command %s needs the parameter %q", c.Name, key)
		}
	}
	return nil
}

// Run implements agent.Actions.
func (r *Runner) Run(ctx context.Context, c ota.Command) agent.Outcome {
	if err := r.Check(c); err != nil {
		return agent.Outcome{Err: err}
	}
	limited, stop := context.WithTimeout(ctx, c.Timeout())
	defer stop()
	var out agent.Outcome
	if c.Name == ota.CommandCollectLogs {
		out = r.collectLogs(limited, c)
	} else {
		out = r.runAction(limited, c)
	}
	if limited.Err() != nil && ctx.Err() == nil {
		out.Err = fmt.Errorf("it was ended after %s, its time-out", c.Timeout())
	}
	return out
}

func (r *Runner) runAction(ctx context.Context, c ota.Command) agent.Outcome {
	a := r.actions[c.Name]
	p := program{argv: slices.Clone(a.run), limit: c.OutputLimit()}
	for i, word := range p.argv {
		if key, ok := placeholder(word); ok {
			p.argv[i] = c.Parameters[key]
		}
	}
	for _, key := range slices.Sorted(maps.Keys(c.Parameters)) {
		p.env = append(p.env, ParameterPrefix+strings.ToUpper(key)+"="+c.Parameters[key])
	}
	res, err := p.run(ctx)
	out := agent.Outcome{Err: err, Details: map[string]string{}}
	if res.output != nil {
		spread(out.Details, res.output)
	}
	if err == nil {
		out.Details[ota.DetailExit] = strconv.Itoa(res.exit)
		if res.exit != 0 {
			out.Err = fmt.Errorf("exit status %d", res.exit)
		}
	}
	return out
}

// spread puts an output into values that are not too long.
func spread(details map[string]string, e *ends) {
	details[ota.DetailOutputBytes] = strconv.FormatInt(e.total, 10)
	text := e.text()
	for i := 1; text != ""; i++ {
		piece := clean(text, ota.MaxDetailValueBytes)
		key := ota.DetailOutput
		if i > 1 {
			key += strconv.Itoa(i)
		}
		details[key] = piece
		text = text[len(piece):]
	}
}
