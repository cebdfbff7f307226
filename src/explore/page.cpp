// src/explore/page.cpp: see page.hpp
#include "explore/page.hpp"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <span>

extern "C" const char weir_explorer_page[], weir_explorer_page_end[];

namespace weir::explore {

namespace {

// ---- A recording's bytes, as record/README.md has them
// ---------------------------------------------------------------

class Bytes {
 public:
  template <class T>
  void put(T value) {
    out_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void text(std::string_view s) { out_.append(s); }
  void events(std::span<const FlowEvent> events) {
    out_.append(reinterpret_cast<const char*>(events.data()), events.size_bytes());
  }
  void zero_ended(const std::string& s) { out_.append(s.c_str(), std::strlen(s.c_str()) + 1); }
  void block(uint32_t tag, const Bytes& payload) {
    put(BlockHeader{tag, static_cast<uint32_t>(payload.out_.size())});
    out_ += payload.out_;
  }
  [[nodiscard]] const std::string& str() const { return out_; }

 private:
  std::string out_;
};

/// record/README.md's format; one block more, of what a page leaves out:
/// SKIP   u64 events left out, then the changes that remain of them
std::string serialize(const Part& part) {
  const Recording& recording = part.recording;
  Bytes out;
  out.put(RecordingHeader{});
  Bytes states;
  for (const std::string& name : recording.states) states.zero_ended(name);
  out.block(BLOCK_STATES, states);
  for (size_t id = 1; id < recording.sites.size(); ++id) {
    Bytes site;
    site.put(static_cast<uint16_t>(id));
    site.zero_ended(recording.sites[id].function);
    site.zero_ended(recording.sites[id].file);
    site.zero_ended(recording.sites[id].arguments);
    out.block(BLOCK_SITE, site);
  }
  for (const Recording::Task& task : recording.tasks) {
    Bytes b;
    b.put(task.tid);
    b.put(task.pid);
    char comm[16] = {};
    std::copy_n(task.comm.data(), std::min(task.comm.size(), sizeof comm), comm);
    b.text({comm, sizeof comm});
    out.block(BLOCK_TASK, b);
  }
  Bytes facts;
  const auto fact = [&](std::string_view key, std::string_view value) {
    facts.put(static_cast<uint16_t>(key.size()));
    facts.put(static_cast<uint16_t>(value.size()));
    facts.text(key);
    facts.text(value);
  };
  if (recording.status != Recording::Status::whole)
    fact("problem", std::string_view(recording.problem).substr(0, 1000));
  for (const Recording::Fact& f : recording.facts) fact(f.key, f.value);
  out.block(BLOCK_FACT, facts);
  // Runs of events without a gap, with what is left out or missing between them.
  auto left_out = part.left_out.begin();
  auto gap = recording.gaps.begin();
  uint64_t number = recording.first;
  for (size_t at = 0; at < recording.events.size();) {
    if (left_out != part.left_out.end() && left_out->at == at) {
      Bytes skip;
      skip.put(left_out->events);
      skip.events(left_out->changes);
      out.block(block_tag("SKIP"), skip);
      if (at > 0) number += left_out->events;
      ++left_out;
    }
    for (; gap != recording.gaps.end() && gap->at <= at; ++gap)
      if (at > 0) number += gap->missing;
    size_t end = std::min(recording.events.size(), at + (size_t{1} << 20));
    if (left_out != part.left_out.end()) end = std::min(end, left_out->at);
    if (gap != recording.gaps.end()) end = std::min(end, gap->at);
    Bytes run;
    run.put(number);
    run.events(std::span(recording.events).subspan(at, end - at));
    out.block(BLOCK_EVENTS, run);
    number += end - at;
    at = end;
  }
  if (recording.status == Recording::Status::whole) {
    Bytes done;
    done.put(number);
    out.block(BLOCK_DONE, done);
  }
  return out.str();
}

std::string compressed(const std::string& bytes) {
  uLongf size = compressBound(bytes.size());
  std::string out(size, '\0');
  if (compress2(reinterpret_cast<Bytef*>(out.data()), &size, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size(),
                Z_BEST_COMPRESSION) != Z_OK)
    throw ExploreError("the recording could not be compressed");
  out.resize(size);
  return out;
}

std::string base64(std::string_view bytes) {
  static constexpr char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t three = 0;
    for (size_t k = 0; k < 3; ++k)
      three = three << 8 | (i + k < bytes.size() ? static_cast<uint8_t>(bytes[i + k]) : 0u);
    for (size_t k = 0; k < 4; ++k) out += i + k > bytes.size() ? '=' : DIGITS[three >> (18 - 6 * k) & 63];
  }
  return out;
}

}  // namespace

std::string page(Part part, const std::string& title) {
  if (part.recording.fact("scenario").empty()) part.recording.facts.push_back({"scenario", title});
  std::string out(weir_explorer_page, weir_explorer_page_end);
  static constexpr std::string_view PLACE = "<!--RECORDING-->";
  const size_t at = out.find(PLACE);
  if (at == std::string::npos) throw ExploreError("the page in this command has no place for a recording");
  out.replace(at, PLACE.size(), base64(compressed(serialize(part))));
  return out;
}

}  // namespace weir::explore
