// src/explore/page_data.cpp: the page as build.py made it, in the command
asm(R"(
  .section .rodata
  .global weir_explorer_page
  .global weir_explorer_page_end
weir_explorer_page:
  .incbin ")" WEIR_EXPLORER_PAGE R"("
weir_explorer_page_end:
  .byte 0
  .previous
)");
