package api

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

type rolloutHandler struct{ *server }

func (h rolloutHandler) PlanRollout(ctx context.Context, r *connect.Request[otadv1.PlanRolloutRequest]) (*connect.Response[otadv1.PlanRolloutResponse], error) {
	spec, err := decodeSpec(r.Msg.GetSpec())
	if err != nil {
		return nil, err
	}
	p, err := h.fleet.PlanRollout(ctx, spec)
	if err != nil {
		return nil, err
	}
	out := &otadv1.PlanRolloutResponse{Population: int32(p.Population), Bytes: p.Bytes, Seed: p.Rollout.Seed}
	for i, stage := range p.Stages {
		out.Stages = append(out.Stages, &otadv1.PlannedStage{
			Spec: encodeStageSpec(p.Rollout.Stages[i]), Target: int32(stage.Target), Devices: int32(stage.Devices), Sample: stage.Sample, Strata: strata(stage.Strata),
		})
	}
	if p.Duration > 0 {
		out.Duration = durationpb.New(p.Duration)
	}
	for _, c := range p.Conflicts {
		out.Conflicts = append(out.Conflicts, &otadv1.Conflict{
			RolloutId: c.Rollout.ID, Firmware: c.Rollout.Release.String(), Priority: int32(c.Rollout.Priority), Devices: int32(c.Devices), Supersedes: c.Supersedes,
		})
	}
	for _, e := range p.Excluded {
		out.Excluded = append(out.Excluded, &otadv1.Exclusion{Reason: e.Reason, Detail: e.Detail, Devices: int32(e.Devices), Sample: e.Sample})
	}
	for _, path := range p.Paths {
		out.Paths = append(out.Paths, &otadv1.PlannedPath{Via: encodeReleases(path.Via), Devices: int32(path.Devices), Sample: path.Sample})
	}
	return connect.NewResponse(out), nil
}

func (h rolloutHandler) CreateRollout(ctx context.Context, r *connect.Request[otadv1.CreateRolloutRequest]) (*connect.Response[otadv1.CreateRolloutResponse], error) {
	spec, err := decodeSpec(r.Msg.GetSpec())
	if err != nil {
		return nil, err
	}
	if r.Msg.GetDraft() {
		spec.State = ota.RolloutDraft
	}
	v, err := h.fleet.CreateRollout(ctx, spec)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.CreateRolloutResponse{Rollout: encodeRollout(v)}), nil
}

func (h rolloutHandler) GetRollout(ctx context.Context, r *connect.Request[otadv1.GetRolloutRequest]) (*connect.Response[otadv1.GetRolloutResponse], error) {
	_, m, err := h.whole(ctx, r.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.GetRolloutResponse{Rollout: m}), nil
}

// whole is a rollout with its last failures, and whom it waits for.
func (h rolloutHandler) whole(ctx context.Context, id string) (fleet.RolloutView, *otadv1.Rollout, error) {
	v, err := h.fleet.Rollout(ctx, id)
	if err != nil {
		return v, nil, err
	}
	failures, err := h.fleet.Failures(ctx, id)
	if err != nil {
		return v, nil, err
	}
	atWork, err := h.fleet.AtWork(ctx, v)
	if err != nil {
		return v, nil, err
	}
	m := encodeRollout(v)
	for _, e := range failures {
		m.Failures = append(m.Failures, encodeExecution(e))
	}
	for _, e := range atWork {
		m.AtWork = append(m.AtWork, encodeExecution(e))
	}
	return v, m, nil
}

func (h rolloutHandler) ListRollouts(ctx context.Context, r *connect.Request[otadv1.ListRolloutsRequest]) (*connect.Response[otadv1.ListRolloutsResponse], error) {
	kind := ota.Kind(r.Msg.GetKind())
	if kind != "" && kind != ota.KindInstall && kind != ota.KindCommand {
		return nil, fmt.Errorf("%w: kind %.40q: want %s or %s", fleet.ErrInvalid, kind, ota.KindInstall, ota.KindCommand)
	}
	all, err := h.fleet.Rollouts(ctx, kind)
	if err != nil {
		return nil, err
	}
	out := &otadv1.ListRolloutsResponse{}
	for _, v := range all {
		out.Rollouts = append(out.Rollouts, encodeRollout(v))
	}
	return connect.NewResponse(out), nil
}

// watchInterval is how often a watch looks by itself, for changes that another
// replica made.
const watchInterval = 2 * time.Second

func (h rolloutHandler) WatchRollout(ctx context.Context, r *connect.Request[otadv1.WatchRolloutRequest], stream *connect.ServerStream[otadv1.WatchRolloutResponse]) error {
	changed, stop := h.fleet.WatchRollout(r.Msg.GetId())
	defer stop()
	last := ""
	return watch(ctx, changed, func() (done bool, err error) {
		v, m, err := h.whole(ctx, r.Msg.GetId())
		if err != nil {
			return false, err
		}
		if s := m.String(); s != last {
			last = s
			if err := stream.Send(&otadv1.WatchRolloutResponse{Rollout: m}); err != nil {
				return false, err
			}
		}
		return v.State.Terminal(), nil
	})
}

// watchPause is what lies between two looks at the least: a rollout may change
// thousands of times a second.
const watchPause = 100 * time.Millisecond

// watch calls look at once, after every signal and every watchInterval, until
// it is done, fails or ctx ends.
func watch(ctx context.Context, changed <-chan struct{}, look func() (bool, error)) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		if done, err := look(); done || err != nil {
			return err
		}
		pause := time.NewTimer(watchPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (h rolloutHandler) PauseRollout(ctx context.Context, r *connect.Request[otadv1.PauseRolloutRequest]) (*connect.Response[otadv1.PauseRolloutResponse], error) {
	reason, err := reasonOr(r.Msg.GetReason(), "paused by an operator")
	if err != nil {
		return nil, err
	}
	v, err := h.fleet.PauseRollout(ctx, r.Msg.GetId(), reason, ota.PausePolicy(r.Msg.GetPolicy()))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.PauseRolloutResponse{Rollout: encodeRollout(v)}), nil
}

func (h rolloutHandler) ResumeRollout(ctx context.Context, r *connect.Request[otadv1.ResumeRolloutRequest]) (*connect.Response[otadv1.ResumeRolloutResponse], error) {
	v, err := h.fleet.ResumeRollout(ctx, r.Msg.GetId(), ota.ResumeAction(r.Msg.GetFailedStage()))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.ResumeRolloutResponse{Rollout: encodeRollout(v)}), nil
}

func (h rolloutHandler) AbortRollout(ctx context.Context, r *connect.Request[otadv1.AbortRolloutRequest]) (*connect.Response[otadv1.AbortRolloutResponse], error) {
	reason, err := reasonOr(r.Msg.GetReason(), "aborted by an operator")
	if err != nil {
		return nil, err
	}
	v, err := h.fleet.AbortRollout(ctx, r.Msg.GetId(), reason, ota.AbortPolicy(r.Msg.GetPolicy()))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.AbortRolloutResponse{Rollout: encodeRollout(v)}), nil
}

func (h rolloutHandler) FinishRollout(ctx context.Context, r *connect.Request[otadv1.FinishRolloutRequest]) (*connect.Response[otadv1.FinishRolloutResponse], error) {
	reason, err := reasonOr(r.Msg.GetReason(), "finished by an operator")
	if err != nil {
		return nil, err
	}
	v, err := h.fleet.FinishRollout(ctx, r.Msg.GetId(), reason)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.FinishRolloutResponse{Rollout: encodeRollout(v)}), nil
}

func (h rolloutHandler) EditRollout(ctx context.Context, r *connect.Request[otadv1.EditRolloutRequest]) (*connect.Response[otadv1.EditRolloutResponse], error) {
	plan, err := decodeSpec(r.Msg.GetSpec())
	if err != nil {
		return nil, err
	}
	v, err := h.fleet.EditRollout(ctx, r.Msg.GetId(), plan)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.EditRolloutResponse{Rollout: encodeRollout(v)}), nil
}

func (h rolloutHandler) SubmitRollout(ctx context.Context, r *connect.Request[otadv1.SubmitRolloutRequest]) (*connect.Response[otadv1.SubmitRolloutResponse], error) {
	v, err := h.fleet.SubmitRollout(ctx, r.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.SubmitRolloutResponse{Rollout: encodeRollout(v)}), nil
}

func (h rolloutHandler) ApproveRollout(ctx context.Context, r *connect.Request[otadv1.ApproveRolloutRequest]) (*connect.Response[otadv1.ApproveRolloutResponse], error) {
	v, err := h.fleet.ApproveRollout(ctx, r.Msg.GetId(), int(r.Msg.GetStage()), r.Msg.GetRevision())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&otadv1.ApproveRolloutResponse{Rollout: encodeRollout(v)}), nil
}

func (h rolloutHandler) StopRollouts(ctx context.Context, r *connect.Request[otadv1.StopRolloutsRequest]) (*connect.Response[otadv1.StopRolloutsResponse], error) {
	reason, err := reasonOr(r.Msg.GetReason(), "emergency stop by an operator")
	if err != nil {
		return nil, err
	}
	stopped, err := h.fleet.StopRollouts(ctx, reason)
	answer := &otadv1.StopRolloutsResponse{Stopped: stopped}
	var some interface{ Unwrap() []error }
	switch {
	case errors.As(err, &some): // one of them each
		for _, failed := range some.Unwrap() {
			answer.Failed = append(answer.Failed, failed.Error())
		}
	case err != nil:
		return nil, err
	}
	return connect.NewResponse(answer), nil
}

// MaxReasonBytes is the longest reason that an operator may give.
const MaxReasonBytes = 500

func reasonOr(reason, otherwise string) (string, error) {
	if len(reason) > MaxReasonBytes {
		return "", fmt.Errorf("%w: reason of %d bytes: at most %d", fleet.ErrInvalid, len(reason), MaxReasonBytes)
	}
	if reason == "" {
		return otherwise, nil
	}
	return reason, nil
}

func (h rolloutHandler) ListExecutions(ctx context.Context, r *connect.Request[otadv1.ListExecutionsRequest]) (*connect.Response[otadv1.ListExecutionsResponse], error) {
	limit, err := pageSize(r.Msg.GetPageSize())
	if err != nil {
		return nil, err
	}
	after, err := decodePageToken(r.Msg.GetPageToken(), 3)
	if err != nil {
		return nil, err
	}
	filter := fleet.ExecutionFilter{
		RolloutID: r.Msg.GetRolloutId(), DeviceID: r.Msg.GetDeviceId(), Active: r.Msg.GetActive(), Latest: !r.Msg.GetEveryAttempt(),
		After: fleet.ExecutionKey{RolloutID: after[0], DeviceID: after[1]},
	}
	if filter.After.Attempt, err = strconv.Atoi(cmp.Or(after[2], "0")); err != nil {
		return nil, badPageToken(r.Msg.GetPageToken())
	}
	page, more, err := h.fleet.ExecutionPage(ctx, filter, limit)
	if err != nil {
		return nil, err
	}
	out := &otadv1.ListExecutionsResponse{}
	for _, e := range page {
		out.Executions = append(out.Executions, encodeExecution(e))
	}
	if more {
		last := page[len(page)-1]
		out.NextPageToken = encodePageToken(last.RolloutID, last.DeviceID, strconv.Itoa(last.Attempt))
	}
	return connect.NewResponse(out), nil
}

func encodeRollout(v fleet.RolloutView) *otadv1.Rollout {
	out := &otadv1.Rollout{
		Id: v.ID, Firmware: v.Release.String(), Selector: v.Selector, Seed: v.Seed, Priority: int32(v.Priority),
		State: string(v.State), Reason: v.Reason, Population: int32(v.Population),
		CreatedAt: timestamp(v.CreatedAt), EndedAt: timestamp(v.EndedAt), ApprovedAt: timestamp(v.ApprovedAt), StartedAt: timestamp(v.StartedAt),
		Spec: encodeSpec(v.Rollout), Reached: int32(v.Cursor), Rate: v.Terms.Rate.At(v.Progress.Total()),
		Idle: v.Idle, Ending: v.Ending(), Holds: v.Holds(), Reverting: v.Reverting, Revision: v.PlanRevision(), RevertOf: v.RevertOf, Health: encodeSeen(v),
	}
	for _, back := range v.Progress.Reverts {
		out.Reverts = append(out.Reverts, &otadv1.Revert{RolloutId: back.ID, State: string(back.State)})
	}
	if v.InProgressTimeout > 0 {
		out.InProgressTimeout = durationpb.New(v.InProgressTimeout)
	}
	for i, s := range v.Stages {
		stage := &otadv1.Stage{
			Spec: encodeStageSpec(s), State: string(s.State), Target: int32(s.Target), Counts: encodeCounts(ota.Counts{}),
			OpenedAt: timestamp(s.OpenedAt), SoakingAt: timestamp(s.SoakingAt), EndedAt: timestamp(s.EndedAt), ApprovedAt: timestamp(s.ApprovedAt),
			SkippedAt: timestamp(s.SkippedAt),
		}
		if i < len(v.Progress.Stages) {
			stage.Counts = encodeCounts(v.Progress.Stages[i])
		}
		out.Stages = append(out.Stages, stage)
	}
	for _, a := range v.Abort {
		out.Abort = append(out.Abort, &otadv1.AbortRule{Class: string(a.Class), Share: a.Share, MinSample: int32(a.MinSample), Count: int32(a.Count)})
	}
	return out
}

func encodeCounts(c ota.Counts) *otadv1.Counts {
	out := &otadv1.Counts{Queued: int32(c.Queued), InProgress: int32(c.InProgress), Retrying: int32(c.Retrying), Finished: map[string]int32{}}
	for class, n := range c.Finished {
		name := string(class)
		if class == ota.ClassNone {
			name = "canceled"
		}
		out.Finished[name] += int32(n)
	}
	return out
}

func encodeExecution(e ota.Execution) *otadv1.Execution {
	command := ""
	if e.Command != nil {
		command = e.Command.Name
	}
	return &otadv1.Execution{
		Command:   command,
		RolloutId: e.RolloutID, DeviceId: e.DeviceID, Stage: int32(e.Stage + 1), Attempt: int32(e.Attempt),
		Status: string(e.Status), Class: string(e.Class), Step: string(e.Step()), Reason: e.Reason(), Details: e.Details,
		Version: e.Version, Firmware: e.Release.String(), QueuedAt: timestamp(e.QueuedAt), StartedAt: timestamp(e.StartedAt),
		UpdatedAt: timestamp(e.UpdatedAt), FinishedAt: timestamp(e.FinishedAt), ExpiresAt: timestamp(e.Expires),
		RetryAt: timestamp(e.RetryAt), Lane: e.Lane, FromDigest: e.From, DriftedAt: timestamp(e.DriftedAt), Runs: e.Runs,
		Via: encodeReleases(e.Via), Leg: int32(e.Leg), StepAt: timestamp(e.StepAt), WentBackAt: timestamp(e.WentBackAt),
	}
}

func encodeReleases(list []ota.ReleaseID) []string {
	var ids []string
	for _, id := range list {
		ids = append(ids, id.String())
	}
	return ids
}

const defaultPage = 100

func pageSize(n int32) (int, error) {
	if n < 0 || n > fleet.MaxPage {
		return 0, fmt.Errorf("%w: page size %d: want 0 (for %d) to %d", fleet.ErrInvalid, n, defaultPage, fleet.MaxPage)
	}
	if n == 0 {
		return defaultPage, nil
	}
	return int(n), nil
}

// pageAfter reads the size of a page and the id that the last one ended with.
func pageAfter(size int32, token string) (limit int, after string, err error) {
	if limit, err = pageSize(size); err != nil {
		return 0, "", err
	}
	parts, err := decodePageToken(token, 1)
	if err != nil {
		return 0, "", err
	}
	return limit, parts[0], nil
}

// A page token is where the last page ended: ids, which hold no line feed.
func encodePageToken(parts ...string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(strings.Join(parts, "\n")))
}

func decodePageToken(s string, parts int) ([]string, error) {
	if s == "" {
		return make([]string, parts), nil
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	split := strings.Split(string(b), "\n")
	if err != nil || len(split) != parts {
		return nil, badPageToken(s)
	}
	return split, nil
}

func badPageToken(s string) error {
	return fmt.Errorf("%w: page token %.40q is not one that a list call returned", fleet.ErrInvalid, s)
}
