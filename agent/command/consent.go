package command

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/otad/otad/agent"
)

// Exit statuses of a consent program: 0 is yes.
const exitDeferred = 75 // EX_TEMPFAIL

// ConsentTimeout is how long a consent program may take; then it counts as
// deferred.
const ConsentTimeout = time.Hour

const maxConsentOutput = 1024

// Consent is an agent.Asker that asks a program. Exit status 0 is yes; 75 puts
// it off, by the seconds on its output if there are any; every other refuses,
// with its output as the reason.
//
// It is told by its environment: OTAGENT_JOB, OTAGENT_NAME, OTAGENT_VERSION,
// OTAGENT_NOTES, OTAGENT_DEFERRALS_LEFT and, when there is one,
// OTAGENT_DEADLINE (RFC 3339).
type Consent struct {
	Argv    []string
	Timeout time.Duration // 0: ConsentTimeout
}

var _ agent.Asker = Consent{}

// Ask implements agent.Asker.
func (c Consent) Ask(ctx context.Context, q agent.Question) (agent.Answer, error) {
	limit := c.Timeout
	if limit == 0 {
		limit = ConsentTimeout
	}
	env := []string{
		"OTAGENT_JOB=" + q.JobID, "OTAGENT_NAME=" + q.Release.Name, "OTAGENT_VERSION=" + q.Release.Version,
		"OTAGENT_NOTES=" + strings.ReplaceAll(q.Notes, "\x00", ""), "OTAGENT_DEFERRALS_LEFT=" + strconv.Itoa(q.Left),
	}
	if !q.Deadline.IsZero() {
		env = append(env, "OTAGENT_DEADLINE="+q.Deadline.Format(time.RFC3339))
	}
	asking, stop := context.WithTimeout(ctx, limit)
	defer stop()
	r, err := program{argv: c.Argv, env: env, limit: maxConsentOutput}.run(asking)
	switch {
	case ctx.Err() != nil:
		return agent.Answer{}, ctx.Err()
	case err != nil:
		return agent.Answer{}, fmt.Errorf("consent program: %w", err)
	case r.exit == 0:
		return agent.Answer{Granted: true}, nil
	case r.exit == exitDeferred:
		return agent.Answer{Defer: seconds(r.output.text())}, nil
	}
	why := strings.TrimSpace(r.output.text())
	if why == "" {
		why = fmt.Sprintf("exit status %d", r.exit)
	}
	return agent.Answer{Refused: why}, nil
}

// seconds reads the first word; 0 when it is no number that makes sense.
func seconds(s string) time.Duration {
	words := strings.Fields(s)
	if len(words) == 0 {
		return 0
	}
	n, err := strconv.ParseUint(words[0], 10, 31)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Second
}
