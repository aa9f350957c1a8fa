package main

import (
	"context"
	"strings"

	"connectrpc.com/connect"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// subject is a kind of thing that the server may miss or have already, by the words that
// its errors begin with.
type subject struct {
	words   string
	missing string // the remedy when there is no such one
	taken   string // the remedy when there is one of the name
}

// subjects is the one table of these remedies; the first that fits counts.
var subjects = []subject{
	{"release ", "otactl firmware list shows the releases", ""},
	{"rollout ", "otactl rollout list shows those of firmware, otactl command list those of commands", ""},
	{"execution of rollout ", "otactl rollout devices ID shows on which devices a rollout has been", ""},
	{"attempt ", "otactl rollout devices ID shows every attempt on every device", ""},
	{"device ", "otactl device list shows the devices", "otactl device show shows it; choose another id"},
	{"one of the devices ", "otactl device list shows the devices", ""},
	{"group ", "otactl group list shows the groups; otactl group create makes one", "otactl group show shows it; choose another name, or change its members with otactl group add and remove"},
	{"webhook ", "otactl webhook list shows the webhooks", "otactl webhook show shows it; choose another name"},
	{"enrollment token ", "otactl token list shows the tokens", ""},
	{"API token ", "otactl token list shows the tokens", ""},
	{"JWT issuer ", "otactl jwt-issuer list shows the issuers", ""},
	{"credential ", "otactl device credential list shows those of a device", ""},
}

// subjectRemedy is what to do about an error of the server's that says what is missing,
// there already, or no selector; empty: nothing that is known.
func subjectRemedy(code connect.Code, message string) string {
	if code == connect.CodeInvalidArgument && strings.HasPrefix(message, "selector: ") {
		return "otactl device list --help tells how to write a selector"
	}
	text, missing := strings.CutSuffix(message, ": not found")
	if !missing {
		text = strings.TrimSuffix(message, ": conflict")
		if code != connect.CodeAlreadyExists || !strings.HasSuffix(text, " exists") {
			return ""
		}
	}
	text = text[strings.LastIndex(text, ": ")+1:]
	for _, s := range subjects {
		if strings.HasPrefix(strings.TrimSpace(text), s.words) {
			if missing {
				return s.missing
			}
			return s.taken
		}
	}
	return ""
}

// stateRemedy adds to the refusal of an act what an operator can do with the rollout as
// it stands.
func (c *client) stateRemedy(ctx context.Context, id string, err error) error {
	switch field := refusedField(err); {
	case field == "priority":
		return hint(err, "otactl rollout edit %s replaces its plan, otactl rollout abort %[1]s drops it", id)
	case connect.CodeOf(err) != connect.CodeFailedPrecondition, field != "":
		return err
	}
	resp, failed := call(ctx, c.rollouts.GetRollout, &otadv1.GetRolloutRequest{Id: id})
	if failed != nil {
		return err
	}
	return hint(err, "%s", newRolloutView(resp.GetRollout()).nextAct())
}

// nextAct is what an operator can do with a rollout.
func (r rolloutView) nextAct() string {
	act := func(text string) string { return strings.ReplaceAll(text, "ID", r.ID) }
	switch state := ota.RolloutState(r.State); {
	case state == ota.RolloutDraft:
		return act("otactl rollout submit ID starts it, edit ID changes it, abort ID drops it")
	case state == ota.RolloutAwaitingApproval:
		return act(r.approval() + " lets it start, edit ID changes it, abort ID drops it")
	case state == ota.RolloutScheduled:
		return act("it starts by itself; otactl rollout pause ID keeps it from that, edit ID changes it, abort ID drops it")
	case state == ota.RolloutRunning && r.Terms.Continuous:
		return act("it runs: otactl rollout pause ID stops it for a while, finish ID or abort ID for good")
	case state == ota.RolloutRunning:
		return act("it runs: otactl rollout pause ID stops it for a while, abort ID for good; another plan is another rollout")
	case state == ota.RolloutPaused && r.Reverting && len(r.Reverts) > 0:
		return act("otactl rollout resume ID goes on to its end; what brings its devices back are rollouts of their own: otactl rollout show ID lists them")
	case state == ota.RolloutPaused && r.Reverting:
		return act("otactl rollout resume ID has its devices go back, abort ID --keep ends it and they keep what they have")
	case state == ota.RolloutPaused && r.Ending:
		return act("otactl rollout resume ID lets it go on to its end, abort ID cancels what has not activated")
	case state == ota.RolloutPaused && r.failedStage() > 0:
		return act("see to what failed, as otactl rollout show ID lists it, then: otactl rollout resume ID --failed-stage repeat, or skip to pass by it; or abort ID")
	case state == ota.RolloutPaused && r.Holds:
		return act("otactl rollout resume ID lets it go on, abort ID ends it")
	case state == ota.RolloutPaused:
		return act("otactl rollout resume ID lets it go on, pause ID --hold has devices at work wait too, abort ID ends it")
	case (state == ota.RolloutCompleted || state == ota.RolloutAborted) && r.Command == nil && r.RevertOf == "":
		return act("it has ended; otactl rollout revert ID brings its devices back, another plan is another rollout")
	case state.Terminal():
		return "it has ended for good; another plan is another rollout"
	}
	return act("it ends by itself when devices at work have finished: otactl rollout watch ID")
}

// failedStage is the number of the stage that failed, from 1; 0: none.
func (r rolloutView) failedStage() int {
	for i, s := range r.Stages {
		if s.State == string(ota.StageFailed) {
			return i + 1
		}
	}
	return 0
}
