// Package nodexds brings the configuration of all proxies of a node over one stream. Its Node is the agent's side: the one copy of what the
// pods of the node share, and a deltaxds.Source of it for each of their proxies. Pilot's side is in its package push.
//
// Configuration lies in layers, such as the one of a class of pods and the one of a service account. A resource is known by its layer, its
// type and Envoy's name for it, and its version is a hash of its content. Of each pod Pilot says which layers its proxy has (its Word);
// where two have a resource of the same name, the proxy has that of the former.
//
// The agent says which pods have a socket, and nothing about what it wants: which layers that makes is Pilot's to know, who finds the pod, by
// its UID, bound to the node in the agent's certificate. So there is one check, and no name of a layer that somebody could guess.
// Pilot answers with an Update whenever something differs: words, and what is new, changed or gone in layers. An update leads from one state of
// the mesh to another and is applied as a whole, so that a proxy is never shown the one half of a change, such as a listener without its
// cluster; in which order Envoy gets it is deltaxds's business. One update is on its way at a time; what changes meanwhile is in the
// next one, so a slow agent costs Pilot the names of what has changed and no more.
//
// A layer is the node's as long as a word names it. Both sides see that in the words, of the same updates, and forget it then.
// The agent that connects says what it has: the words, and the versions in their layers. Whatever differs is in the first update. It also says which version of the
// module of package closer it leaves in each pod's directory, as that chooses between layers. While
// Pilot is away, the proxies of pods that it has spoken of are served, also such as were not there before. So are those of pods that it has never
// spoken of, if another pod on the node is of their class and their service account; they have what that one has. Others wait.
//
// The agent reports what each proxy has taken and refused of which update. It is told to Pilot as deltaxds.Status has it, which knows only
// what Envoy has answered: that an update has been received says nothing about proxies.
//
// Why this is not delta ADS between the two: there, every type is answered by itself, so a change has no end that could be waited for, and
// neither has a collection; the agent would have to ask for layers that Pilot has just named, and Pilot to check each; what proxies
// answered would need another way back.
package nodexds
