// src/record/flow_tree.cpp: see flow_tree.hpp
#include "record/flow_tree.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <string_view>
#include <unordered_map>

namespace weir {

// ---- The forest -----------------------------------------------------------------------------------------------------

namespace {

// Builds one task's forest. The events of the task come in order, twice: look() finds which calls were running at the
// start, add() makes the items.
class Builder {
 public:
  void look(const FlowEvent& event) {
    if (event.is_enter()) stack_.push_back(event.site);
    if (!event.is_leave()) return;
    const auto own = std::find(stack_.rbegin(), stack_.rend(), event.site);
    if (own != stack_.rend()) {
      stack_.erase(own.base() - 1, stack_.end());
    } else {
      stack_.clear();
      running_.push_back(event.site);  // inner ones end first
    }
  }

  void start() {
    stack_.clear();
    for (auto site = running_.rbegin(); site != running_.rend(); ++site) open(FlowItem::NONE, *site);
  }

  void add(const FlowEvent& event, uint32_t index) {
    if (event.is_enter()) {
      open(index, event.site);
    } else if (event.is_state()) {
      append(index, event.site, false);
    } else {
      auto own = open_.size();
      while (own > 0 && items_[open_[own - 1]].site != event.site) --own;
      if (own == 0) return;  // look() has seen to it that this does not happen
      while (open_.size() >= own) close(index);
    }
  }

  std::vector<FlowItem> finish() {
    while (!open_.empty()) close(FlowItem::NONE);
    return std::move(items_);
  }

 private:
  void append(uint32_t event, uint16_t site, bool is_call) {
    FlowItem item;
    item.event = event;
    item.parent = open_.empty() ? FlowItem::NONE : open_.back();
    item.depth = static_cast<uint32_t>(open_.size());
    item.site = site;
    item.is_call = is_call;
    items_.push_back(item);
    items_.back().end = static_cast<uint32_t>(items_.size());
  }
  void open(uint32_t event, uint16_t site) {
    append(event, site, true);
    open_.push_back(static_cast<uint32_t>(items_.size() - 1));
  }
  void close(uint32_t leave) {
    FlowItem& item = items_[open_.back()];
    item.leave = leave;
    item.end = static_cast<uint32_t>(items_.size());
    open_.pop_back();
  }

  std::vector<uint16_t> stack_;    // look(): sites of calls that were entered
  std::vector<uint16_t> running_;  // sites of calls whose enter is missing
  std::vector<uint32_t> open_;     // add(): items of calls not yet left
  std::vector<FlowItem> items_;
};

}  // namespace

std::vector<TaskFlow> flow_forest(const Recording& recording) {
  std::vector<TaskFlow> forest;
  std::vector<Builder> builders;
  std::unordered_map<int32_t, size_t> at;
  for (const FlowEvent& event : recording.events) {
    const auto [found, is_new] = at.try_emplace(event.tid, forest.size());
    if (is_new) {
      forest.push_back({event.tid, {}});
      builders.emplace_back();
    }
    builders[found->second].look(event);
  }
  for (Builder& builder : builders) builder.start();
  for (uint32_t i = 0; i < recording.events.size(); ++i)
    builders[at[recording.events[i].tid]].add(recording.events[i], i);
  for (size_t i = 0; i < forest.size(); ++i) forest[i].items = builders[i].finish();
  return forest;
}

// ---- State changes in words -----------------------------------------------------------------------------------------

namespace {

/// Bookkeeping: what the kernel notes beside the steps that the documents name.
enum class Kind : uint8_t { step, bookkeeping };

// {s}, {b}, {a} stand for subject, old and new value, decimal. After a colon: x hexadecimal; p a frame number plus one,
// 0 for none; c eight characters; pte, entry, lru, flags, vmf by FlowStyles; or =word,word,... names for 0, 1, ...
// hiN, loN: what stands above and in the lowest N bits; perhaps followed by a colon and one of these.
struct StateText {
  std::string_view name;
  std::string_view text;
  Kind kind = Kind::step;
};

constexpr StateText STATE_TEXTS[] = {
    {"zonelist", "begins with zone {s}, order {a}"},
    {"watermark", "zone {s}: {a} free, mark {b}"},
    {"watermark_low", "zone {s}: {a} free, mark {b}: too few"},
    {"pcp_hit", "pfn {s}: {b} -> {a} on the list"},
    {"pcp_miss", "zone {s}, order {a}"},
    {"buddy_find", "pfn {s}: order {b} wanted, order {a} found"},
    {"buddy_remove", "pfn {s}: {b} -> {a} free blocks"},
    {"buddy_split", "pfn {s}: order {b} -> {a}"},
    {"buddy_merge", "pfn {s}: order {b} -> {a}"},
    {"page_alloced", "pfn {s}, order {a}"},
    {"page_freed", "pfn {s}, order {b}: {a} free in the zone"},
    {"nr_free", "zone {s}: {b} -> {a}"},
    {"free_area", "zone {s:hi8}, order {s:lo8}: {b} -> {a} free blocks", Kind::bookkeeping},
    {"pcp_count", "zone {s:hi16}, list {s:lo16}: {b} -> {a} pages", Kind::bookkeeping},
    {"zone_span", "zone {s}: from pfn {b}, {a} pages", Kind::bookkeeping},
    {"zone_mark", "zone {s:hi8}, {s:lo8:=min,low,high}: {b} -> {a}", Kind::bookkeeping},
    {"kmem_cache_select", "{b} bytes: class of {s}"},
    {"slab_empty", "class of {s}"},
    {"slab_new", "pfn {s}: {b} objects, colour {a}"},
    {"slab_object", "pfn {s} + {b}: {a} bytes"},
    {"vmalloc_area", "{s:x}: {a} bytes"},
    {"reclaim_fruitless", "order {s}: {b} -> {a} loops"},
    {"user_request", "{b:=mmap,brk,malloc,file} at {s:x}: {a} bytes"},
    {"vma_create", "{s:x} - {a:x}"},
    {"vma_extend", "{s:x}: end {b:x} -> {a:x}"},
    {"vma_remove", "{s:x} - {b:x}"},
    {"fault", "{s:x}, error code {b:x}"},
    {"fault_anonymous", "{s:x}"},
    {"fault_file", "{s:x}"},
    {"fault_return", "{s:x}: {a:vmf}"},
    {"pte", "{s:lo48:x} of mm {s:hi48}: {b:pte} -> {a:pte}"},
    {"mapcount", "pfn {s}: {b} -> {a}"},
    {"page_count", "pfn {s}: {b} -> {a}", Kind::bookkeeping},
    {"page_mapping", "pfn {s}: {a:=none,file,anonymous,,merged}, index {b}", Kind::bookkeeping},
    {"rss", "mm {s}: {b} -> {a}"},
    {"mm_task", "mm {s}: pid {b} -> {a}", Kind::bookkeeping},
    {"task_comm", "pid {s}: {b:c}{a:c}", Kind::bookkeeping},
    {"lru", "pfn {s}: {b:lru} -> {a:lru}"},
    {"lru_tail", "pfn {s}: to the old end of {b:lru}", Kind::bookkeeping},
    {"page_flags", "pfn {s}: {b:flags} -> {a:flags}", Kind::bookkeeping},
    {"reclaim_start", "{s:=direct,kswapd,limit}: priority {b}, {a} pages wanted"},
    {"scan_lru", "{s:lru}: {b} to scan, {a} taken"},
    {"drop_clean", "pfn {s}, index {b}"},
    {"write_dirty", "pfn {s}, index {b}"},
    {"page_keep", "pfn {s}, reason {b}"},
    {"swap_slot", "{s:entry}"},
    {"swap_map", "{s:entry}: {b} -> {a}"},
    {"swap_cache", "{s:entry}: {b:p} -> {a:p}"},
    {"swap_write", "{s:entry} <- pfn {b}"},
    {"swap_read", "{s:entry} -> pfn {b}"},
    {"swap_area", "type {s}: {b} -> {a} pages"},
    {"io_done", "sector {s}, pfn {b}, error {a}"},
    {"zram_store", "index {s}: {b} -> {a} bytes"},
    {"file_request", "inode {s}: {b:=read,write,fault} of index {a}"},
    {"page_cache_find", "inode {s}, index {b}: {a:p}"},
    {"page_cache_read", "inode {s}, index {b} -> pfn {a}"},
    {"page_cache", "inode {s:hi48}, index {s:lo48}: {b:p} -> {a:p}"},
    {"page_cache_return", "inode {s}, index {b}: pfn {a}"},
    {"page_dirtied", "pfn {s}, index {b}"},
    {"dirty_count", "{b} -> {a}"},
    {"dirty_pause", "task {s}: {a} ns"},
    {"writeback_start", "reason {s}: {a} pages"},
    {"buffer", "{s:x}: {b:x} -> {a:x}"},
    {"page_orphan", "pfn {s}"},
    {"oom_points", "pid {s}: adj {b:i}, {a} points"},
    {"oom_select", "pid {s}: {a} points"},
    {"oom_kill", "pid {s}: {a} pages"},
    {"oom_reap", "pid {s}: {b} -> {a} pages"},
    {"task_exit", "pid {s}: {b} pages"},
    {"window_unmap", "{s:x}: {b} pages, way {a}"},
    {"map_in", "{s:x} -> pfn {b}, {a:=copied,zero,staged}"},
};

// What functions return, in the same notation; a number where the function is not here.
struct ResultText {
  std::string_view function;
  std::string_view style;
};

constexpr ResultText RESULT_TEXTS[] = {
    {"handle_mm_fault", "vmf"},
    {"handle_pte_fault", "vmf"},
    {"do_anonymous_page", "vmf"},
    {"do_swap_page", "vmf"},
    {"do_wp_page", "vmf"},
    {"alloc_pages", "p"},
    {"lookup_swap_cache", "p"},
    {"get_swap_page", "entry"},
    {"add_to_swap", "=no slot,has a slot"},
    {"try_to_unmap", "=SWAP_SUCCESS,SWAP_FAIL"},
    {"pageout", "=PAGE_KEEP,PAGE_ACTIVATE,PAGE_SUCCESS,PAGE_CLEAN"},
    {"__remove_mapping", "=kept,removed"},
};

void put_value(std::string& out, std::string_view style, uint64_t value, const FlowStyles& styles) {
  auto by = [&](std::string (*format)(uint64_t)) {
    out += format != nullptr ? format(value) : fmt::format("{:#x}", value);
  };
  if (style.empty()) {
    out += fmt::format("{}", value);
  } else if (style == "x") {
    out += fmt::format("{:#x}", value);
  } else if (style.starts_with("hi") || style.starts_with("lo")) {
    const size_t colon = std::min(style.find(':'), style.size());
    unsigned bits = 0;
    for (const char digit : style.substr(2, colon - 2)) bits = 10 * bits + static_cast<unsigned>(digit - '0');
    const uint64_t part = style[0] == 'h' ? value >> bits : value & ((uint64_t{1} << bits) - 1);
    put_value(out, style.substr(std::min(colon + 1, style.size())), part, styles);
  } else if (style == "c") {
    for (; value != 0; value >>= 8)
      out += (value & 0xff) < ' ' || (value & 0xff) == 0x7f ? '?' : static_cast<char>(value);
  } else if (style == "i") {
    out += fmt::format("{}", static_cast<int64_t>(value));
  } else if (style == "p") {
    out += value == 0 ? "none" : fmt::format("pfn {}", value - 1);
  } else if (style == "pte") {
    by(styles.pte);
  } else if (style == "entry") {
    by(styles.swap_entry);
  } else if (style == "lru") {
    by(styles.lru_list);
  } else if (style == "flags") {
    by(styles.page_flags);
  } else if (style == "vmf") {
    by(styles.fault_result);
  } else {  // =word,word
    style.remove_prefix(1);
    for (uint64_t i = 0; i < value && !style.empty(); ++i) {
      const size_t comma = style.find(',');
      style.remove_prefix(comma == std::string_view::npos ? style.size() : comma + 1);
    }
    out += style.empty() ? fmt::format("{}", value) : style.substr(0, style.find(','));
  }
}

}  // namespace

/// The words for a state; null if it has none.
static const StateText* state_text(std::string_view name) {
  const auto known =
      std::find_if(std::begin(STATE_TEXTS), std::end(STATE_TEXTS), [&](const StateText& t) { return t.name == name; });
  return known != std::end(STATE_TEXTS) ? known : nullptr;
}

std::string describe_state(const Recording& recording, const FlowEvent& event, const FlowStyles& styles) {
  const std::string_view name = recording.state_name(event);
  const StateText* known = state_text(name);
  std::string_view text = known != nullptr ? known->text : "{s}: {b} -> {a}";
  std::string out(name);
  out += ' ';
  while (!text.empty()) {
    const size_t brace = text.find('{');
    out += text.substr(0, brace);
    if (brace == std::string_view::npos) break;
    const size_t end = text.find('}', brace);
    const char which = text[brace + 1];
    const uint64_t value = event.value[which == 's' ? 0 : which == 'b' ? 1 : 2];
    put_value(out, text[brace + 2] == ':' ? text.substr(brace + 3, end - brace - 3) : "", value, styles);
    text.remove_prefix(end + 1);
  }
  return out;
}

/// What an expression is called: the last name of a chain, "pfn" of "filemap_.pages().mem().pfn(page)". Anything else
/// is shown as it was written.
static std::string_view argument_name(std::string_view expression) {
  std::string_view chain = expression;
  if (const size_t open = chain.find_last_of("({["); open != std::string_view::npos && open > 0) {
    // The last call's arguments; what stands before them is a chain without spaces, or no chain.
    if (chain.back() != ')' || chain[open] != '(') return expression;
    chain = chain.substr(0, open);
  }
  const auto in_name = [](char c) {
    return c == '_' || (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
  };
  const auto in_chain = [&](char c) {
    return in_name(c) || c == '.' || c == '-' || c == '>' || c == ':' || c == '(' || c == ')';
  };
  if (!std::all_of(chain.begin(), chain.end(), in_chain)) return expression;
  size_t first = chain.size();
  while (first > 0 && in_name(chain[first - 1])) --first;
  std::string_view name = chain.substr(first);
  while (name.size() > 1 && name.back() == '_') name.remove_suffix(1);
  return name.empty() ? expression : name;
}

std::string describe_arguments(const Recording& recording, const FlowEvent& event) {
  std::string_view names = recording.site(event).arguments;
  std::string out;
  for (int i = 0; i < 3 && !names.empty(); ++i) {
    // A comma inside brackets belongs to an expression.
    size_t end = 0;
    for (int depth = 0; end < names.size() && (names[end] != ',' || depth > 0); ++end) {
      if (names[end] == '(' || names[end] == '[' || names[end] == '{') ++depth;
      if (names[end] == ')' || names[end] == ']' || names[end] == '}') --depth;
    }
    if (i > 0) out += ", ";
    out += argument_name(names.substr(0, end));
    out += event.value[i] < 4096 ? fmt::format("={}", event.value[i]) : fmt::format("={:#x}", event.value[i]);
    names.remove_prefix(std::min(end + 1, names.size()));
    while (!names.empty() && names.front() == ' ') names.remove_prefix(1);
  }
  return out;
}

std::string describe_result(const Recording& recording, const FlowEvent& leave, const FlowStyles& styles) {
  if (leave.value[1] != 1) return {};
  const std::string_view function = recording.site(leave).function;
  const auto known = std::find_if(std::begin(RESULT_TEXTS), std::end(RESULT_TEXTS),
                                  [&](const ResultText& t) { return t.function == function; });
  std::string out;
  put_value(out, known != std::end(RESULT_TEXTS) ? known->style : "i", leave.value[0], styles);
  return out;
}

// ---- Printing -------------------------------------------------------------------------------------------------------

namespace {

class Printer {
 public:
  Printer(const Recording& recording, const FlowPrint& how) : recording_(recording), how_(how) {
    for (const Recording::Task& task : recording.tasks) comm_[task.tid] = task.comm;
  }

  std::string run() {
    for (const TaskFlow& task : flow_forest(recording_)) {
      if (lines_ >= how_.first) break;
      if (!wanted(task)) continue;
      if (how_.around) choose_around(task);
      heading_due_ = true;
      print(task);
    }
    return std::move(out_);
  }

 private:
  [[nodiscard]] bool wanted(const TaskFlow& task) const {
    if (how_.task.empty() || how_.task == fmt::format("{}", task.tid)) return true;
    const auto comm = comm_.find(task.tid);
    return comm != comm_.end() && how_.task == comm->second;
  }

  // Marks the items near the event and the calls around them.
  void choose_around(const TaskFlow& task) {
    chosen_.assign(task.items.size(), false);
    const uint64_t low = *how_.around > how_.radius ? *how_.around - how_.radius : 0,
                   high = uint64_t{*how_.around} + how_.radius;
    for (uint32_t i = 0; i < task.items.size(); ++i) {
      if (task.items[i].event == FlowItem::NONE || task.items[i].event < low || task.items[i].event > high) continue;
      for (uint32_t up = i; up != FlowItem::NONE && !chosen_[up]; up = task.items[up].parent) chosen_[up] = true;
    }
  }

  void print(const TaskFlow& task) {
    uint32_t base = 0;   // depth that is printed without a tab
    uint32_t until = 0;  // items below it are in a chosen subtree
    for (uint32_t i = 0; i < task.items.size() && lines_ < how_.first;) {
      const FlowItem& item = task.items[i];
      if (!how_.function.empty() && i >= until) {
        if (!item.is_call || recording_.sites[item.site].function != how_.function) {
          ++i;
          continue;
        }
        base = item.depth;
        until = item.end;
      }
      if (how_.around && !chosen_[i]) {
        i = item.end;  // nothing below is chosen either
        continue;
      }
      if (heading_due_) heading(task);
      const uint32_t depth = item.depth - base;
      if (item.is_call) {
        call(item, depth);
        if (depth >= how_.depth) {
          i = hidden(task, i, depth);
          continue;
        }
      } else if (how_.states == Shown::yes) {
        state(item, depth);
      }
      ++i;
    }
  }

  void heading(const TaskFlow& task) {
    heading_due_ = false;
    out_ += fmt::format("task {}", task.tid);
    if (const auto comm = comm_.find(task.tid); comm != comm_.end() && !comm->second.empty())
      out_ += fmt::format(" ({})", comm->second);
    out_ += '\n';
  }

  void time(const FlowItem& item) {
    if (how_.times == Shown::yes && item.event != FlowItem::NONE)
      out_ += fmt::format(" @{}", recording_.events[item.event].time);
  }

  void call(const FlowItem& item, uint32_t depth) {
    const Recording::Site& site = recording_.sites[item.site];
    out_.append(depth, '\t');
    out_ += "|-->";
    out_ += item.site == 0 ? "?" : site.function;
    if (how_.arguments == Shown::yes && item.event != FlowItem::NONE && !site.arguments.empty())
      out_ += fmt::format("({})", describe_arguments(recording_, recording_.events[item.event]));
    out_ += fmt::format(" //({})", site.file);
    if (how_.results == Shown::yes && item.leave != FlowItem::NONE)
      if (const std::string result = describe_result(recording_, recording_.events[item.leave], how_.styles);
          !result.empty())
        out_ += " = " + result;
    time(item);
    if (item.event == FlowItem::NONE) out_ += " (running when the recording began)";
    if (item.leave == FlowItem::NONE) out_ += " (running when it ended)";
    end_line();
  }

  void state(const FlowItem& item, uint32_t depth) {
    const StateText* known = state_text(recording_.state_name(recording_.events[item.event]));
    if (known != nullptr && known->kind == Kind::bookkeeping && how_.bookkeeping == Shown::no) return;
    out_.append(depth, '\t');
    out_ += "|   ";
    out_ += describe_state(recording_, recording_.events[item.event], how_.styles);
    time(item);
    end_line();
  }

  // The call's state changes still show; calls below it are counted. The index past its subtree.
  uint32_t hidden(const TaskFlow& task, uint32_t call, uint32_t depth) {
    uint64_t calls = 0;
    for (uint32_t i = call + 1; i < task.items[call].end; ++i) {
      const FlowItem& item = task.items[i];
      if (item.is_call)
        ++calls;
      else if (item.parent == call && how_.states == Shown::yes && lines_ < how_.first && (!how_.around || chosen_[i]))
        state(item, depth + 1);
    }
    if (calls > 0 && lines_ < how_.first) {
      out_.append(depth + 1, '\t');
      out_ += fmt::format("|   {} calls below", calls);
      end_line();
    }
    return task.items[call].end;
  }

  void end_line() {
    out_ += '\n';
    ++lines_;
  }

  const Recording& recording_;
  const FlowPrint& how_;
  std::string out_;
  std::unordered_map<int32_t, std::string_view> comm_;
  std::vector<bool> chosen_;  // around: [item]
  uint64_t lines_ = 0;
  bool heading_due_ = false;
};

}  // namespace

std::string print_flow(const Recording& recording, const FlowPrint& how) { return Printer(recording, how).run(); }

}  // namespace weir
