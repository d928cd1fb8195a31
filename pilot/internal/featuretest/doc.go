// Package featuretest tests Pilot as a whole: Kubernetes' objects go in, and what proxies receive comes out. The tests know
// nothing of what is in between but how the parts are put together, so they stay true while that is built anew. There is
// nothing but tests here:
//
//   - TestGolden shows, for worlds in testdata, what the proxies of that world hold, as text to review.
//   - TestEnvoyTakesEveryWorld has the real Envoy take the same worlds over a stream, whole and without a refusal.
//   - TestIncrementalEqualsFresh changes a world at random, and compares what the proxies have received after each change
//     with what they would receive of a Pilot that starts then.
package featuretest
